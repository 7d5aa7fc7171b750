"""Jigsaw-format CSV in and out: the challenge's columns id, comment_text and six labels of 0 or 1, as Kaggle gives them.

Not here: training on it (corpus_training.py). Every row is checked before anything is returned, and an error names the file,
the line and the column.
"""

import csv
import difflib
import hashlib
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toxicity.comments import LabelledComment
from toxicity.hold_out import newly_assigned, text_hash, without_texts
from toxicity.labels import LABELS

ID_COLUMN = "id"
TEXT_COLUMN = "comment_text"
HELD_OUT_SHARE = 0.1  # of the corpus, where no file to validate on is given
LINE_BREAK = re.compile("\r\n|\r|\n")
NOT_SCORED = "-1"  # how the challenge marks the rows of its test file that did not count


@dataclass(frozen=True)
class Corpus:
    """Labelled comments in their file's order, and how many rows were left out because the challenge did not score them."""

    comments: list[LabelledComment]
    left_out: int


@dataclass(frozen=True)
class CorpusSplit:
    """What is trained on, what is held out, and how many rows of both files the challenge did not score."""

    training: list[LabelledComment]
    held_out: list[LabelledComment]
    left_out: int
    sha256: str = ""  # of the training file


def anchors_file() -> Path:
    """Return the anchors that ship with the code: comments of our own writing that every training run replays some of."""
    return Path(__file__).parent / "anchors.csv"


def reference_file() -> Path:
    """Return the reference comments that ship with the code: our own writing, to judge versions on, never trained on."""
    return Path(__file__).parent / "reference.csv"


def read_corpus(path: Path, labels: Path | None = None) -> Corpus:
    """Return the rows of a Jigsaw-format CSV, without those that the challenge did not score.

    Where `labels` is given it has the labels of the same ids (the challenge's test_labels.csv to its test.csv).

    Raises:
        ValueError: a file is empty, not UTF-8 or no CSV, lacks a column, or has a label that is none of 0, 1 and -1.
        OSError: it cannot be read.
    """
    comments: list[LabelledComment] = []
    left_out = 0
    labelled = None if labels is None else _labels_by_id(labels)
    for line, row in _rows(path, (TEXT_COLUMN, *LABELS) if labelled is None else (ID_COLUMN, TEXT_COLUMN)):
        if labelled is None:
            targets = _targets(path, line, row)
        elif row[ID_COLUMN] in labelled:
            targets = labelled[row[ID_COLUMN]]
        else:
            raise ValueError(f"{path}, line {line}, column {ID_COLUMN}: {row[ID_COLUMN][:40]!r} has no labels in {labels}.")
        if targets is None:
            left_out += 1
        else:
            comments.append(LabelledComment(row[TEXT_COLUMN], targets))
    if not comments:
        raise ValueError(f"{path}, line 2: no labelled comment below the header ({left_out} rows were left out: labels of -1).")
    return Corpus(comments, left_out)


def split_corpus(train: Path, validate: Path | None) -> CorpusSplit:
    """Read a corpus and what to validate on; without such a file a stratified tenth of the corpus is held out.

    Raises:
        ValueError: a file cannot be used; the message names file, line and column. OSError: it cannot be read.
    """
    corpus = read_corpus(train)
    digest = hashlib.sha256(train.read_bytes()).hexdigest()
    left_out = corpus.left_out
    if validate is not None:
        validation = read_corpus(validate)
        training, held_out = corpus.comments, validation.comments
        left_out += validation.left_out
    else:
        training, held_out = _by_text(corpus.comments)
    training = without_texts(training, held_out)
    if not training:
        raise ValueError(
            f"{train}: nothing to train on, as all its {len(corpus.comments)} comments are held out too. Give others."
        )
    return CorpusSplit(training, held_out, left_out, digest)


def _by_text(comments: Sequence[LabelledComment]) -> tuple[list[LabelledComment], list[LabelledComment]]:
    """By text, so that a comment is on the same side wherever in the file it stands, and in the next release of it too."""
    hashes = [text_hash(comment.text) for comment in comments]
    targets = dict(zip(hashes, (comment.targets for comment in comments), strict=True))
    sides = newly_assigned(0, targets, {}, HELD_OUT_SHARE)
    first, second = (
        [comment for each, comment in zip(hashes, comments, strict=True) if sides[each] is side] for side in (False, True)
    )
    return first, second


def read_comments(path: Path) -> tuple[list[str], list[str]]:
    """Return the ids and the texts of a CSV with comment_text; a row without an id has its number, from 1.

    Raises:
        ValueError: the file is empty, not UTF-8 or no CSV, or lacks comment_text. OSError: it cannot be read.
    """
    ids, texts = [], []
    for number, (_, row) in enumerate(_rows(path, (TEXT_COLUMN,)), 1):
        ids.append(row.get(ID_COLUMN) or str(number))
        texts.append(row[TEXT_COLUMN])
    return ids, texts


def require_writable(path: Path) -> None:
    """Find out before hours of work whether a file can be written.

    Raises:
        OSError: it cannot; nothing was changed.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is there and is no file: give another name.")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.touch()
        aside.unlink()
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}): give another name.") from error


def write_submission(path: Path, ids: Sequence[str], probabilities: npt.NDArray[np.float32]) -> None:
    """Write ids and probabilities, shape (ids, 6), in the challenge's submission format: the whole file, or none."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow((ID_COLUMN, *LABELS))
            writer.writerows((each, *(f"{p:.6f}" for p in row)) for each, row in zip(ids, probabilities.tolist(), strict=True))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _labels_by_id(path: Path) -> Mapping[str, tuple[float, ...] | None]:
    labelled: dict[str, tuple[float, ...] | None] = {}
    for line, row in _rows(path, (ID_COLUMN, *LABELS)):
        targets = _targets(path, line, row)
        if labelled.setdefault(row[ID_COLUMN], targets) != targets:
            raise ValueError(f"{path}, line {line}, column {ID_COLUMN}: {row[ID_COLUMN][:40]!r} came before with other labels.")
    return labelled


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row with the line that it begins in; columns that nobody asked for may be missing at its end."""
    text = _text(path)
    if not text.strip():
        raise ValueError(f"{path}, line 1: the file is empty; expected a header with {', '.join(columns)}.")
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # the csv module refuses comments over 131,072 characters
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        found = list(reader.fieldnames or [])
        missing = [_missing(column, found) for column in columns if column not in found]
        if missing:
            hint = "Separate the columns by commas" if len(found) == 1 and re.search("[;\t]", found[0]) else "Name the columns"
            raise ValueError(
                f"{path}, line 1: no column {', '.join(missing)}; found {', '.join(found) or 'nothing'}. {hint} as in the Jigsaw "
                "Toxic Comment Classification Challenge's train.csv."
            )
        doubled = [column for column in columns if found.count(column) > 1]
        if doubled:
            raise ValueError(f"{path}, line 1: the column {doubled[0]} is there {found.count(doubled[0])} times: leave one.")
        for row in reader:
            # The csv module drops blank lines, so a row begins where it ends, less the line breaks in it.
            line = reader.line_num - sum(len(LINE_BREAK.findall(value)) for value in row.values() if isinstance(value, str))
            if None in row:
                raise ValueError(f"{path}, line {line} has more fields than the header: quote a comment that holds commas.")
            missing = [column for column in columns if row[column] is None]
            if missing:
                raise ValueError(f"{path}, line {line}, column {missing[0]}: the row ends before it; it has too few fields.")
            yield line, row
            line = reader.line_num + 1  # where the next one begins, should it be none
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: {error}. A comment with commas, quotes or line breaks must be quoted.") from error


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise ValueError(
            f"{path}, line {line}, byte {column} is not UTF-8 ({error.reason}: 0x{content[error.start]:02x}). Convert the file."
        ) from error


def _missing(column: str, found: Sequence[str]) -> str:
    alike = difflib.get_close_matches(column, found, 1)
    return f"{column} (is it {alike[0]!r}?)" if alike else column


def _targets(path: Path, line: int, row: Mapping[str, str]) -> tuple[float, ...] | None:
    values = [row[label].strip() for label in LABELS]
    for label, value in zip(LABELS, values, strict=True):
        if value not in ("0", "1", NOT_SCORED):
            raise ValueError(f"{path}, line {line}, column {label}: {value[:40]!r} is neither 0 nor 1 (nor -1: not scored).")
    if NOT_SCORED in values:
        return None
    return tuple(float(value) for value in values)
