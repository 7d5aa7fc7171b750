"""Jigsaw-format CSV in and out: what is read, held out and written, and that an error names the file, line and column."""

import csv
from pathlib import Path

import numpy as np
import pytest

from toxicity.comments import LabelledComment
from toxicity.corpus import (
    Corpus,
    anchors_file,
    read_comments,
    read_corpus,
    reference_file,
    require_writable,
    split_corpus,
    write_submission,
)
from toxicity.labels import LABELS

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
    expected = [LabelledComment("rude", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)), LabelledComment("kind", CLEAN)]
    assert read_corpus(file) == Corpus(expected, left_out=0)


def test_quoted_newlines_commas_and_quotes_belong_to_the_text(file: Path) -> None:
    file.write_bytes((HEADER + '1,"two\nlines,\r\na ""quote"" and é😀",0,0,0,0,0,0\n').encode())
    assert read_corpus(file).comments == [LabelledComment('two\nlines,\r\na "quote" and é😀', CLEAN)]


def test_rows_that_were_not_scored_are_left_out(file: Path) -> None:
    unscored = "1,unscored,-1,-1,-1,-1,-1,-1\n3,unscored too,-1,0,0,0,0,0\n"
    file.write_text(HEADER + unscored + "2,scored,1,0,0,0,0,0\n")
    assert read_corpus(file) == Corpus([LabelledComment("scored", (1.0, *CLEAN[1:]))], left_out=2)


def test_labels_may_stand_in_another_file_by_id_in_any_order(file: Path, tmp_path: Path) -> None:
    labels = tmp_path / "test_labels.csv"
    file.write_text("id,comment_text\na,first\nb,second\nc,third\n")
    labels.write_text(HEADER.replace("comment_text,", "") + "c,0,0,0,1,0,0\nb,-1,-1,-1,-1,-1,-1\nz,1,1,1,1,1,1\na,0,0,0,0,0,0\n")
    third = LabelledComment("third", (0.0, 0.0, 0.0, 1.0, 0.0, 0.0))
    assert read_corpus(file, labels) == Corpus([LabelledComment("first", CLEAN), third], left_out=1)


def test_a_row_without_labels_in_their_file_is_named(file: Path, tmp_path: Path) -> None:
    labels = tmp_path / "test_labels.csv"
    file.write_text("id,comment_text\na,first\nb,second\n")
    labels.write_text(HEADER.replace("comment_text,", "") + "a,0,0,0,0,0,0\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 3, column id: 'b' has no labels in \S+test_labels\.csv\.$"):
        read_corpus(file, labels)


def test_a_fault_in_the_file_of_labels_is_named_there(file: Path, tmp_path: Path) -> None:
    labels = tmp_path / "test_labels.csv"
    file.write_text("id,comment_text\na,first\n")
    labels.write_text(HEADER.replace("comment_text,", "") + "a,0,0,0,0,0,maybe\n")
    with pytest.raises(ValueError, match=r"test_labels\.csv, line 2, column identity_hate: 'maybe' is neither 0 nor 1"):
        read_corpus(file, labels)
    labels.write_text("id,toxic\n")
    with pytest.raises(ValueError, match=r"test_labels\.csv, line 1: no column severe_toxic"):
        read_corpus(file, labels)
    labels.write_text(HEADER.replace("comment_text,", "") + "a,0,0,0,0,0,0\n")
    file.write_text("comment_text\nfirst\n")
    with pytest.raises(ValueError, match=r"train\.csv, line 1: no column id; found comment_text\."):
        read_corpus(file, labels)


def test_missing_text_is_the_empty_comment(file: Path) -> None:
    file.write_text(HEADER + "1,,0,0,0,0,0,0\n")
    assert read_corpus(file).comments == [LabelledComment("", CLEAN)]


def test_a_comment_may_be_longer_than_the_csv_modules_limit(file: Path) -> None:
    file.write_text(HEADER + f"1,{'bread ' * 30_000},0,0,0,0,0,0\n")
    assert len(read_corpus(file).comments[0].text) == 180_000


def test_a_byte_order_mark_is_no_part_of_the_first_column(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + HEADER.removeprefix("id,").encode() + b"kind,0,0,0,0,0,0\n")
    assert read_corpus(file).comments == [LabelledComment("kind", CLEAN)]


def test_missing_columns_are_named_with_what_was_found(file: Path) -> None:
    message = refusal(file, "id,comment_text,toxic\n")
    assert "train.csv, line 1: no column severe_toxic, obscene, threat, insult, identity_hate;" in message
    assert "found id, comment_text, toxic." in message


@pytest.mark.parametrize(("misspelt", "meant"), [("identity_hat", "identity_hate"), ("comment-text", "comment_text")])
def test_a_misspelt_column_is_recognized(file: Path, misspelt: str, meant: str) -> None:
    message = refusal(file, HEADER.replace(meant, misspelt) + "1,kind,0,0,0,0,0,0\n")
    assert f"line 1: no column {meant} (is it {misspelt!r}?); found" in message


@pytest.mark.parametrize("value", ["2", "yes", "", "0.5"])
def test_a_label_that_is_neither_0_nor_1_is_named_with_line_and_column(file: Path, value: str) -> None:
    message = refusal(file, HEADER + f'1,"two\nlines",0,0,0,0,0,0\n2,kind,0,0,0,{value},0,0\n')
    assert f"train.csv, line 4, column threat: {value!r} is neither 0 nor 1" in message


def test_a_wrong_label_is_named_even_where_another_says_that_the_row_was_not_scored(file: Path) -> None:
    message = refusal(file, HEADER + "1,kind,-1,-1,-1,7,-1,-1\n")
    assert "train.csv, line 2, column threat: '7' is neither 0 nor 1 (nor -1: not scored)" in message


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_blank_lines_do_not_shift_the_line_that_is_named(file: Path, line_break: str) -> None:
    content = HEADER + '\n1,"two\nlines",0,0,0,0,0,0\n\n\n2,kind,0,0,0,yes,0,0\n'
    assert "train.csv, line 7, column threat: 'yes'" in refusal(file, content.replace("\n", line_break))


def test_what_cannot_be_written_is_found_out_before_the_work(tmp_path: Path) -> None:
    for there in (tmp_path, Path("/dev/null")):
        with pytest.raises(FileExistsError, match=r"is there and is no file: give another name"):
            require_writable(there)
    with pytest.raises(OSError, match=r"missing/out.csv cannot be written \(No such file or directory\): give another name"):
        require_writable(tmp_path / "missing" / "out.csv")
    require_writable(tmp_path / "new.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_column_that_is_there_twice_is_named(file: Path) -> None:
    assert "line 1: the column toxic is there 2 times" in refusal(file, HEADER.replace("\n", ",toxic\n") + "1,a,0,0,0,0,0,0,1\n")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_recognized(file: Path, separator: str) -> None:
    message = refusal(file, (HEADER + "1,a,0,0,0,0,0,0\n").replace(",", separator))
    assert "Separate the columns by commas as in the Jigsaw" in message


def test_an_id_with_two_sets_of_labels_is_named(file: Path, tmp_path: Path) -> None:
    labels = tmp_path / "test_labels.csv"
    file.write_text("id,comment_text\na,first\n")
    labels.write_text(HEADER.replace("comment_text,", "") + "a,0,0,0,0,0,0\na,0,0,0,0,0,0\n")
    assert len(read_corpus(file, labels).comments) == 1
    labels.write_text(HEADER.replace("comment_text,", "") + "a,0,0,0,0,0,0\na,1,0,0,0,0,0\n")
    with pytest.raises(ValueError, match=r"test_labels\.csv, line 3, column id: 'a' came before with other labels\.$"):
        read_corpus(file, labels)


def test_a_corpus_that_is_held_out_as_a_whole_is_refused(file: Path, tmp_path: Path) -> None:
    validate = tmp_path / "validate.csv"
    for path in (file, validate):
        path.write_text(HEADER + "1,Good bread,0,0,0,0,0,0\n")
    with pytest.raises(ValueError, match=r"train\.csv: nothing to train on, as all its 1 comments are held out too"):
        split_corpus(file, validate)


def test_a_value_in_a_message_is_cut_short(file: Path) -> None:
    message = refusal(file, HEADER + f"1,kind,{'y' * 1000},0,0,0,0,0\n")
    assert f"column toxic: {'y' * 40!r} is neither" in message
    assert len(message) < 300


def test_a_short_row_is_named_with_line_and_column(file: Path) -> None:
    assert "train.csv, line 2, column obscene: the row ends before it; it has too few fields" in refusal(
        file, HEADER + "1,cut off,0,0\n"
    )


def test_a_row_with_too_many_fields_is_named(file: Path) -> None:
    message = refusal(file, HEADER + '1,"two\nlines",0,0,0,0,0,0\n1,an unquoted, comma,0,0,0,0,0,0,0\n')
    assert "train.csv, line 4 has more fields than the header: quote a comment that holds commas" in message


def test_a_quote_that_never_ends_is_refused(file: Path) -> None:
    message = refusal(file, HEADER + '1,good,0,0,0,0,0,0\n2,"open,0,0,0,0,0,0\n3,lost,0,0,0,0,0,0\n')
    assert "train.csv, line 3: unexpected end of data. A comment with" in message


def test_a_byte_that_is_not_utf_8_is_named_by_its_place_in_the_file(file: Path) -> None:
    content = (HEADER + "1,kind,0,0,0,0,0,0\n" * 1000 + "2,caf").encode()
    message = refusal(file, content + b"\xe9,0,0,0,0,0,0\n")
    assert f"train.csv, line 1002, byte {len('2,caf') + 1} is not UTF-8" in message
    assert "0xe9" in message


def test_an_empty_file_is_refused(file: Path) -> None:
    for empty in (b"", b"\xef\xbb\xbf", b"\n\n"):
        assert f"line 1: the file is empty; expected a header with comment_text, {', '.join(LABELS)}." in refusal(file, empty)


def test_a_file_that_is_not_there_is_an_oserror_with_its_name(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.csv"):
        read_corpus(file)


def test_a_file_without_labelled_rows_is_refused(file: Path) -> None:
    assert "train.csv, line 2: no labelled comment below the header (0 rows were left out" in refusal(file, HEADER)
    assert "(1 rows were left out: labels of -1)" in refusal(file, HEADER + "1,unscored,-1,-1,-1,-1,-1,-1\n")


def numbered(first: int, count: int, labels: str) -> str:
    return "".join(f"{number},Remark number {number},{labels}\n" for number in range(first, first + count))


def test_a_tenth_of_a_corpus_is_held_out_stratified_and_always_the_same(file: Path) -> None:
    rows = numbered(0, 900, "0,0,0,0,0,0") + numbered(900, 60, "1,0,0,0,1,0") + numbered(960, 40, "1,0,0,1,0,0")
    file.write_text(HEADER + rows + "1000,unscored,-1,-1,-1,-1,-1,-1\n")
    split = split_corpus(file, None)
    assert split.left_out == 1
    assert sorted(split.training + split.held_out, key=str) == sorted(read_corpus(file).comments, key=str)
    clean, insults, threats = (
        sum(comment.targets == targets for comment in split.held_out)
        for targets in (CLEAN, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 1.0, 0.0, 0.0))
    )
    assert abs(clean - 90) <= 19  # two standard deviations
    assert abs(insults - 6) <= 5
    assert abs(threats - 4) <= 1
    assert split_corpus(file, None) == split


def test_the_next_release_of_a_corpus_holds_out_the_same_comments_and_learns_hardly_one(file: Path) -> None:
    rows = numbered(0, 900, "0,0,0,0,0,0") + numbered(900, 60, "1,0,0,0,1,0") + numbered(960, 40, "1,0,0,1,0,0")
    file.write_text(HEADER + rows)
    before = split_corpus(file, None)
    file.write_text(HEADER + numbered(2000, 30, "0,0,0,0,0,0") + numbered(2030, 3, "1,0,0,1,0,0") + rows)
    after = split_corpus(file, None)
    held_out = {comment.text for comment in before.held_out}
    assert len(held_out & {comment.text for comment in after.training}) < 0.06 * len(held_out)


def test_a_file_to_validate_on_is_what_is_held_out(file: Path, tmp_path: Path) -> None:
    validate = tmp_path / "validate.csv"
    file.write_text(HEADER + numbered(0, 20, "0,0,0,0,0,0") + "20,unscored,-1,-1,-1,-1,-1,-1\n")
    validate.write_text(HEADER + numbered(50, 3, "1,0,0,0,0,0") + numbered(60, 2, "-1,-1,-1,-1,-1,-1"))
    split = split_corpus(file, validate)
    assert (split.training, split.held_out, split.left_out) == (read_corpus(file).comments, read_corpus(validate).comments, 3)
    validate.write_text(HEADER)
    with pytest.raises(ValueError, match=r"validate\.csv, line 2: no labelled comment"):
        split_corpus(file, validate)


def test_a_text_that_is_held_out_is_not_trained_on_wherever_it_stands_again(file: Path, tmp_path: Path) -> None:
    validate = tmp_path / "validate.csv"
    again = '9,"  REMARK\n number 3",1,0,0,0,0,0\n'
    file.write_text(HEADER + numbered(0, 20, "0,0,0,0,0,0") + again)
    validate.write_text(HEADER + numbered(3, 2, "1,0,0,0,0,0"))
    split = split_corpus(file, validate)
    assert [comment.text for comment in split.held_out] == ["Remark number 3", "Remark number 4"]
    assert [comment.text for comment in split.training] == [f"Remark number {k}" for k in range(20) if k not in (3, 4)]
    file.write_text(HEADER + numbered(0, 100, "0,0,0,0,0,0") + numbered(0, 100, "0,0,0,0,0,0"))
    split = split_corpus(file, None)
    held_out, training = ({comment.text for comment in comments} for comments in (split.held_out, split.training))
    assert len(split.held_out) >= 15
    assert held_out.isdisjoint(training)
    assert len(held_out | training) == 100


def test_comments_are_read_with_their_ids_or_else_their_numbers(file: Path) -> None:
    file.write_text('id,comment_text,note\n00a,"one\nremark",x\n,another,\n7,,\n')
    assert read_comments(file) == (["00a", "2", "7"], ["one\nremark", "another", ""])
    file.write_text("comment_text\nfirst\nsecond\n")
    assert read_comments(file) == (["1", "2"], ["first", "second"])
    file.write_text("id,comment_text\n")
    assert read_comments(file) == ([], [])


def test_a_file_of_comments_that_cannot_be_read_is_refused_by_name(file: Path) -> None:
    faults = {
        "": r"line 1: the file is empty; expected a header with comment_text\.",
        "id,text\n1,a\n": r"line 1: no column comment_text; found id, text\.",
        "id,Comment_text\n1,a\n": r"line 1: no column comment_text \(is it 'Comment_text'\?\)",
        "id,comment_text\n1,a, b\n": "line 2 has more fields than the header",
    }
    for content, told in faults.items():
        file.write_text(content)
        with pytest.raises(ValueError, match=rf"train\.csv, {told}"):
            read_comments(file)


def test_a_submission_has_the_challenges_form(tmp_path: Path) -> None:
    output = tmp_path / "submission.csv"
    output.write_text("an older one")
    probabilities = np.array([[0.5, 0, 1, 0.25, 0.125, 1e-9], [1 / 3] * 6], np.float32)
    write_submission(output, ["00a", "with, comma"], probabilities)
    with output.open(newline="") as opened:
        header, *rows = csv.reader(opened)
    assert header == ["id", *LABELS]
    assert rows == [
        ["00a", "0.500000", "0.000000", "1.000000", "0.250000", "0.125000", "0.000000"],
        ["with, comma", *["0.333333"] * 6],
    ]
    assert list(tmp_path.iterdir()) == [output]


def test_a_submission_that_cannot_be_finished_leaves_no_half_file_and_the_older_one_whole(tmp_path: Path) -> None:
    output = tmp_path / "submission.csv"
    output.write_text("an older one")
    with pytest.raises(ValueError, match="shorter"):  # two ids, one row: the first row is written by then
        write_submission(output, ["1", "2"], np.zeros((1, 6), np.float32))
    assert output.read_text() == "an older one"
    assert list(tmp_path.iterdir()) == [output]
    with pytest.raises(OSError, match="none"):
        write_submission(tmp_path / "none" / "submission.csv", ["1"], np.zeros((1, 6), np.float32))


def test_the_reference_comments_that_ship_show_every_label_and_are_no_anchors() -> None:
    reference = read_corpus(reference_file()).comments
    texts = {comment.text for comment in reference}
    assert len(texts) == len(reference) >= 100
    assert texts.isdisjoint(anchor.text for anchor in read_corpus(anchors_file()).comments)
    for column in range(6):
        assert sum(comment.targets[column] == 1 for comment in reference) >= 5
    assert sum(not any(comment.targets) for comment in reference) >= 40


def test_the_anchors_that_ship_show_every_label_and_friendly_comments_too() -> None:
    anchors = read_corpus(anchors_file()).comments
    assert len({anchor.text for anchor in anchors}) == len(anchors) >= 64
    for column in range(6):
        assert sum(anchor.targets[column] == 1 for anchor in anchors) >= 5
    assert sum(not any(anchor.targets) for anchor in anchors) >= 20
