"""Jigsaw-format CSV: what is read, and that an error names the file, the line and the column."""

from pathlib import Path

import pytest

from toxicity.comments import LabelledComment
from toxicity.corpus import anchors_file, read_corpus

HEADER = "id,comment_text,toxic,severe_toxic,obscene,threat,insult,identity_hate\n"
CLEAN = (0.0,) * 6


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "train.csv"


def refusal(file: Path, content: bytes | str) -> str:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"train\.csv") as caught:
        read_corpus(file)
    return str(caught.value)


def test_rows_are_read_in_order_with_labels_in_our_order(file: Path) -> None:
    file.write_text(
        "comment_text,insult,identity_hate,toxic,severe_toxic,obscene,threat,note\nrude,1,0,1,0, 0 ,0,x\nkind,0,0,0,0,0,0,\n"
    )
    assert read_corpus(file) == [LabelledComment("rude", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)), LabelledComment("kind", CLEAN)]


def test_quoted_newlines_commas_and_quotes_belong_to_the_text(file: Path) -> None:
    file.write_bytes((HEADER + '1,"two\nlines,\r\na ""quote"" and é😀",0,0,0,0,0,0\n').encode())
    assert read_corpus(file) == [LabelledComment('two\nlines,\r\na "quote" and é😀', CLEAN)]


def test_rows_that_were_not_scored_are_left_out(file: Path) -> None:
    file.write_text(HEADER + "1,unscored,-1,-1,-1,-1,-1,-1\n2,scored,1,0,0,0,0,0\n")
    assert [comment.text for comment in read_corpus(file)] == ["scored"]


def test_missing_text_is_the_empty_comment(file: Path) -> None:
    file.write_text(HEADER + "1,,0,0,0,0,0,0\n")
    assert read_corpus(file) == [LabelledComment("", CLEAN)]


def test_a_comment_may_be_longer_than_the_csv_modules_limit(file: Path) -> None:
    file.write_text(HEADER + f"1,{'bread ' * 30_000},0,0,0,0,0,0\n")
    assert len(read_corpus(file)[0].text) == 180_000


def test_a_byte_order_mark_is_no_part_of_the_first_column(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + HEADER.removeprefix("id,").encode() + b"kind,0,0,0,0,0,0\n")
    assert read_corpus(file) == [LabelledComment("kind", CLEAN)]


def test_missing_columns_are_named_with_what_was_found(file: Path) -> None:
    message = refusal(file, "id,comment_text,toxic\n")
    assert "train.csv, line 1: no column severe_toxic, obscene, threat, insult, identity_hate" in message
    assert "found: id, comment_text, toxic" in message


@pytest.mark.parametrize("value", ["2", "yes", "", "0.5"])
def test_a_label_that_is_neither_0_nor_1_is_named_with_line_and_column(file: Path, value: str) -> None:
    message = refusal(file, HEADER + f'1,"two\nlines",0,0,0,0,0,0\n2,kind,0,0,0,{value},0,0\n')
    assert f"train.csv, line 4, column threat: {value!r} is neither 0 nor 1" in message


def test_a_short_row_is_named_with_line_and_column(file: Path) -> None:
    assert "train.csv, line 2, column obscene: ''" in refusal(file, HEADER + "1,cut off,0,0\n")


def test_a_row_with_too_many_fields_is_named(file: Path) -> None:
    assert "train.csv, line 2" in refusal(file, HEADER + "1,an unquoted, comma,0,0,0,0,0,0,0\n")


def test_a_quote_that_never_ends_is_refused(file: Path) -> None:
    assert "line" in refusal(file, HEADER + '1,good,0,0,0,0,0,0\n2,"open,0,0,0,0,0,0\n3,lost,0,0,0,0,0,0\n')


def test_a_byte_that_is_not_utf_8_is_named_by_its_place_in_the_file(file: Path) -> None:
    content = (HEADER + "1,kind,0,0,0,0,0,0\n" * 1000 + "2,caf").encode()
    message = refusal(file, content + b"\xe9,0,0,0,0,0,0\n")
    assert "not UTF-8" in message
    assert f"byte {len(content)}" in message or "line 1002" in message


def test_an_empty_file_is_refused(file: Path) -> None:
    assert "line 1: no column comment_text" in refusal(file, "")


def test_a_file_without_labelled_rows_is_refused(file: Path) -> None:
    assert "no labelled comment" in refusal(file, HEADER)
    assert "no labelled comment" in refusal(file, HEADER + "1,unscored,-1,-1,-1,-1,-1,-1\n")


def test_the_anchors_that_ship_show_every_label_and_friendly_comments_too() -> None:
    anchors = read_corpus(anchors_file())
    assert len({anchor.text for anchor in anchors}) == len(anchors) >= 64
    for column in range(6):
        assert sum(anchor.targets[column] == 1 for anchor in anchors) >= 5
    assert sum(not any(anchor.targets) for anchor in anchors) >= 20
