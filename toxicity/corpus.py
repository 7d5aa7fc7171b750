"""Jigsaw-format CSV in: the challenge's columns, comment_text and six labels of 0 or 1.

Not here: training on it (fine_tuning.py). Every row is checked before anything is returned, and an error names the file,
the line and the column.
"""

import csv
from pathlib import Path

from toxicity.fine_tuning import LabelledComment
from toxicity.labels import LABELS

TEXT_COLUMN = "comment_text"
NOT_SCORED = "-1"  # how the challenge marks the rows of its test file that did not count


def read_corpus(path: Path) -> list[LabelledComment]:
    """Return the rows of a Jigsaw-format CSV in their order, without those that the challenge did not score.

    Raises:
        ValueError: the file is empty, not UTF-8, lacks a column, or has a label that is none of 0, 1 and -1.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in (TEXT_COLUMN, *LABELS) if column not in (reader.fieldnames or [])]
            if missing:
                raise ValueError(
                    f"{path}, line 1: no column {', '.join(missing)} (found: {', '.join(reader.fieldnames or ['nothing'])}). "
                    "The Jigsaw Toxic Comment Classification Challenge's train.csv has the columns that are needed."
                )
            comments = [comment for row in reader if (comment := _comment(path, reader.line_num, row)) is not None]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}: {error.reason}). Convert it to UTF-8.") from error
    if not comments:
        raise ValueError(f"{path} holds no labelled comment below its header line.")
    return comments


def _comment(path: Path, line: int, row: dict[str, str | None]) -> LabelledComment | None:
    values = [(row[label] or "").strip() for label in LABELS]
    if NOT_SCORED in values:
        return None
    for label, value in zip(LABELS, values, strict=True):
        if value not in ("0", "1"):
            raise ValueError(f"{path}, line {line}, column {label}: {value!r} is neither 0 nor 1.")
    return LabelledComment(row[TEXT_COLUMN] or "", tuple(float(value) for value in values))
