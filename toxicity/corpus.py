"""Jigsaw-format CSV in: the challenge's columns, comment_text and six labels of 0 or 1.

Not here: training on it (fine_tuning.py). Every row is checked before anything is returned, and an error names the file,
the line and the column.
"""

import csv
import io
from pathlib import Path
from typing import Any

from toxicity.comments import LabelledComment
from toxicity.labels import LABELS

TEXT_COLUMN = "comment_text"
NOT_SCORED = "-1"  # how the challenge marks the rows of its test file that did not count


def anchors_file() -> Path:
    """Return the anchors that ship with the code: comments of our own writing that every training run replays some of."""
    return Path(__file__).parent / "anchors.csv"


def read_corpus(path: Path) -> list[LabelledComment]:
    """Return the rows of a Jigsaw-format CSV in their order, without those that the challenge did not score.

    Raises:
        ValueError: the file is empty, not UTF-8 or no CSV, lacks a column, or has a label that is none of 0, 1 and -1.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line} is not UTF-8 (byte {error.start}: {error.reason}). Convert it to UTF-8."
        ) from error
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # the csv module refuses comments over 131,072 characters
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        missing = [column for column in (TEXT_COLUMN, *LABELS) if column not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(
                f"{path}, line 1: no column {', '.join(missing)} (found: {', '.join(reader.fieldnames or ['nothing'])}). "
                "The Jigsaw Toxic Comment Classification Challenge's train.csv has the columns that are needed."
            )
        comments = [comment for row in reader if (comment := _comment(path, reader.line_num, row)) is not None]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}. A comment with commas or quotes must be quoted.") from error
    if not comments:
        raise ValueError(f"{path} holds no labelled comment below its header line.")
    return comments


def _comment(path: Path, line: int, row: dict[str | Any, str | Any]) -> LabelledComment | None:
    if None in row:
        raise ValueError(f"{path}, line {line} has more fields than the header: quote a comment that holds commas.")
    values = [(row[label] or "").strip() for label in LABELS]
    if NOT_SCORED in values:
        return None
    for label, value in zip(LABELS, values, strict=True):
        if value not in ("0", "1"):
            raise ValueError(f"{path}, line {line}, column {label}: {value!r} is neither 0 nor 1.")
    return LabelledComment(row[TEXT_COLUMN] or "", tuple(float(value) for value in values))
