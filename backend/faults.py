"""Where a fault happened, for the log: without the message and the values, as either may hold a comment.

Not here: what a client is told (app.py).
"""


def place_of(error: BaseException) -> str:
    """Return file and line of the innermost frame that an exception went through."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    return f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else "an unknown place"
