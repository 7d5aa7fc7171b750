"""Word piece ids against bert-for-tf2's own tokenizers, and what truncation and padding make of them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bert.tokenization import albert_tokenization, bert_tokenization
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import TINY_VOCABULARY
from tests.test_encoder import sentence_piece_model
from toxicity.bert import embedded_model_dir
from toxicity.tokenizer import Tokenizer, Vocabulary, batches_by_length

pytestmark = pytest.mark.tensorflow

UNCASED = Vocabulary(embedded_model_dir() / "vocab.txt", lower_case=True)
LONG_ENOUGH = 2000
TAIL = round(126 * 0.25)
ODD = "\x00\x07\x1c\x1f\x85\x7f\u00ad\u200b\u200d\u2028\u2029\ufeff\ufffd\ud83d \t\n\r\u00a0\u3000\u0301編ヴ한😀İßΣςéaB9,.'-[#"
anything = st.text(st.characters(exclude_categories=()) | st.sampled_from(ODD), max_size=60)


REFERENCES = {case: bert_tokenization.FullTokenizer(str(UNCASED.file), do_lower_case=case) for case in (True, False)}
TOKENIZERS = {case: Tokenizer(Vocabulary(UNCASED.file, case), LONG_ENOUGH) for case in (True, False)}
SHORT = Tokenizer(UNCASED, 10)  # eight between [CLS] and [SEP], two of them for the end


def whole_text_ids(comment: str, lower_case: bool = True) -> list[int]:
    reference = REFERENCES[lower_case]
    return list(reference.convert_tokens_to_ids(["[CLS]", *reference.tokenize(comment), "[SEP]"]))


@given(anything, st.booleans())
@example("a\x1cb a\x85b a\u2028b a\u2029b a\u00a0b a\u200bb", True)
@example("ΟΔΟΣ ΟΔΟΣ\u0301 İstanbul", True)
@example("[CLS] [SEP] [PAD] ##ing", False)
@settings(max_examples=300, deadline=None)
def test_ids_are_those_of_bert_for_tf2_on_the_whole_text(comment: str, lower_case: bool) -> None:
    assert TOKENIZERS[lower_case].encode(comment) == whole_text_ids(comment, lower_case)


@given(anything)
@settings(max_examples=100, deadline=None)
def test_a_comment_that_is_too_long_keeps_its_beginning_and_its_end(comment: str) -> None:
    whole = whole_text_ids(comment)
    assert SHORT.encode(comment) == (whole if len(whole) <= 10 else [*whole[:7], *whole[-3:]])


def test_an_empty_comment_is_cls_and_sep() -> None:
    assert [SHORT.encode(comment) for comment in ("", " \n\t", "\x00\u200b")] == [[101, 102]] * 3


@pytest.mark.parametrize("piece", ["a", "a ", "unbelievably ", "編", "!", "\u0301", " ", "😀", "\x00", "한"])
def test_a_comment_of_100000_characters_is_cut_to_the_maximum_length(piece: str) -> None:
    comment = (piece * 100_000)[:100_000]
    ids = Tokenizer(UNCASED, 128).encode(comment)
    assert (ids[0], ids[-1]) == (101, 102)
    assert len(ids) <= 128
    whole = whole_text_ids(comment)
    assert ids == (whole if len(whole) <= 128 else [*whole[: 127 - TAIL], *whole[-1 - TAIL :]])


def test_padding_fills_ids_with_pad_and_the_mask_with_0() -> None:
    batch = SHORT.pad([SHORT.encode("good"), SHORT.encode("good day")])
    np.testing.assert_array_equal(batch.input_word_ids, [[101, 2204, 102, 0], [101, 2204, 2154, 102]])
    np.testing.assert_array_equal(batch.input_mask, [[1, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(batch.segment_ids, np.zeros((2, 4)))
    assert {array.dtype for array in batch.inputs()} == {np.dtype(np.int32)}
    assert [id(array) for array in batch.inputs()] == [id(batch.input_word_ids), id(batch.input_mask), id(batch.segment_ids)]


def test_padding_uses_the_vocabularys_own_pad_id(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("a\n[UNK]\n[CLS]\n[SEP]\n[PAD]\n")
    tokenizer = Tokenizer(Vocabulary(file, lower_case=True), 8)
    np.testing.assert_array_equal(tokenizer.pad([[2, 3], [2, 0, 3]]).input_word_ids, [[2, 3, 4], [2, 0, 3]])


@pytest.mark.parametrize("piece", ["[CLS]", "[SEP]", "[PAD]", "[UNK]"])
def test_a_vocabulary_that_lacks_a_special_piece_is_refused_by_name(piece: str, tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(word for word in TINY_VOCABULARY if word != piece))
    with pytest.raises(ValueError, match=r"vocab\.txt has \d+ entries but not \[" + piece[1:-1]):
        Tokenizer(Vocabulary(file, lower_case=True), 8)


def test_a_maximum_length_without_room_for_a_word_piece_is_refused() -> None:
    with pytest.raises(ValueError, match="maximum length is 2"):
        Tokenizer(UNCASED, 2)


def test_threads_that_share_a_tokenizer_get_the_same_ids() -> None:
    comments = [f"comment {number % 50} about bread, number {number}, naïvely!" for number in range(400)]
    shared = Tokenizer(UNCASED, 32)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shared.encode, comments)) == [whole_text_ids(comment) for comment in comments]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 7))
def test_batches_hold_every_row_once_shortest_first(lengths: list[int], size: int) -> None:
    batches = list(batches_by_length(lengths, size))
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths)
    assert all(len(batch) == size for batch in batches[:-1])


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    file = tmp_path_factory.mktemp("pieces") / "30k-clean.model"
    file.write_bytes(sentence_piece_model())
    return Vocabulary(file, lower_case=True, sentence_piece=True)


@given(
    comment=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("bread the 2,500 , \u3000\u2028é😀"), max_size=40)
)
@example(comment="The BREAD cost 2,500 crowns,  naïvely [CLS] ")
@settings(max_examples=100, deadline=None)
def test_sentence_piece_ids_are_those_of_bert_for_tf2(pieces: Vocabulary, comment: str) -> None:
    reference = albert_tokenization.FullTokenizer(None, spm_model_file=str(pieces.file))
    text = albert_tokenization.preprocess_text(comment, lower=True)
    expected = reference.convert_tokens_to_ids(["[CLS]", *reference.tokenize(text), "[SEP]"])
    assert Tokenizer(pieces, LONG_ENOUGH).encode(comment) == expected


def test_sentence_piece_takes_empty_long_and_broken_text(pieces: Vocabulary) -> None:
    tokenizer = Tokenizer(pieces, 16)
    assert tokenizer.encode("") == [2, 3]
    assert tokenizer.encode("\ud83d") == tokenizer.encode("?")
    for comment in ("a" * 100_000, "bread " * 20_000):
        ids = tokenizer.encode(comment)
        assert (ids[0], ids[-1], len(ids)) == (2, 3, 16)


def test_sentence_piece_keeps_the_beginning_and_the_end(pieces: Vocabulary) -> None:
    tokenizer, words = Tokenizer(pieces, 16), "bread the bread " * 400
    whole = Tokenizer(pieces, LONG_ENOUGH).encode(words)[1:-1]
    assert tokenizer.encode("the the the " + words)[1:7] == tokenizer.encode("the the the")[1:-1]
    assert tokenizer.encode(words + "the the")[-5:-1] == tokenizer.encode("the the")[1:-1]
    assert tokenizer.encode(words)[1:11] == whole[:10]


def test_sentence_piece_skips_white_space_however_long(pieces: Vocabulary) -> None:
    tokenizer = Tokenizer(pieces, 16)
    assert tokenizer.encode("\n" * 2000 + "bread") == tokenizer.encode("bread")


def test_a_sentence_piece_model_without_cls_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bare.model"
    file.write_bytes(sentence_piece_model(control_symbols=["[SEP]", "[MASK]"]))
    with pytest.raises(ValueError, match=r"but not \[CLS\]"):
        Tokenizer(Vocabulary(file, lower_case=True, sentence_piece=True), 8)
