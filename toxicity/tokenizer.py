"""Comment -> word piece ids, masks and segments, with bert-for-tf2's tokenizers.

Not here: which vocabulary (the encoder's own assets say, encoder.py). The ids are bert-for-tf2's, token for token;
what is added is a cache of words and an early stop, so that a comment of 100,000 characters costs little.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bert.tokenization import albert_tokenization, bert_tokenization

IntArray = npt.NDArray[np.int32]

CACHED_WORDS = 50_000
CACHED_WORD_CHARACTERS = 64
CHARACTERS_PER_PIECE = 64  # SentencePiece reads at most this many characters for each piece it may keep


@dataclass(frozen=True)
class Vocabulary:
    """Where an encoder's word pieces come from: a BERT vocabulary or a SentencePiece model, and the case rule."""

    file: Path
    lower_case: bool
    sentence_piece: bool = False


@dataclass(frozen=True)
class TokenBatch:
    """One padded batch, each array of shape (comments, longest comment's word pieces), int32."""

    input_word_ids: IntArray
    input_mask: IntArray
    segment_ids: IntArray

    def inputs(self) -> list[IntArray]:
        """Return the three arrays in the order that the tutorial's BERT layer takes them."""
        return [self.input_word_ids, self.input_mask, self.segment_ids]


class Tokenizer:
    """Turns comments into word piece ids. Safe to share between threads."""

    def __init__(self, vocabulary: Vocabulary, max_length: int) -> None:
        """Load the vocabulary. max_length counts word pieces, [CLS] and [SEP] included.

        Raises:
            ValueError: the vocabulary lacks [CLS], [SEP], [PAD] (<pad>) or [UNK] (<unk>), or max_length is under 3.
        """
        if max_length < 3:
            raise ValueError(f"The maximum length is {max_length} word pieces; [CLS], [SEP] and one more need 3.")
        self.max_length = max_length
        self.vocabulary = vocabulary
        module = albert_tokenization if vocabulary.sentence_piece else bert_tokenization
        arguments: dict[str, Any] = {"vocab_file": str(vocabulary.file), "do_lower_case": vocabulary.lower_case}
        if vocabulary.sentence_piece:
            arguments["spm_model_file"] = str(vocabulary.file)
        self._tokenizer = module.FullTokenizer(**arguments)
        pieces = self._tokenizer.vocab
        wanted = ("[CLS]", "[SEP]", "<pad>", "<unk>") if vocabulary.sentence_piece else ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
        missing = [piece for piece in wanted if piece not in pieces]
        if missing:
            raise ValueError(
                f"The vocabulary {vocabulary.file} has {len(pieces)} entries but not {', '.join(missing)}: "
                "use the vocab_file (or SentencePiece model) that the encoder was trained with."
            )
        self._cls, self._sep, self._pad, self._unknown = (pieces[piece] for piece in wanted)
        self._cached_word = lru_cache(maxsize=CACHED_WORDS)(self._word_ids)

    def encode(self, comment: str) -> list[int]:
        """Return the comment's ids, [CLS] first and [SEP] last, at most max_length of them."""
        room = self.max_length - 2
        ids = self._sentence_ids(comment, room) if self.vocabulary.sentence_piece else self._words_ids(comment, room)
        return [self._cls, *ids[:room], self._sep]

    def _words_ids(self, comment: str, room: int) -> list[int]:
        # BERT's tokenizer treats words apart from each other, so taking them one by one gives the same ids. Only
        # these four characters may be split on: str.split() also splits on controls that BERT deletes from a word.
        ids: list[int] = []
        for match in re.finditer(r"[^ \t\n\r]+", comment):
            word = match.group()
            ids.extend(self._cached_word(word) if len(word) <= CACHED_WORD_CHARACTERS else self._word_ids(word))
            if len(ids) >= room:
                break
        return ids

    def _word_ids(self, word: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(word)))

    def _sentence_ids(self, comment: str, room: int) -> list[int]:
        # SentencePiece takes no lone surrogate, and its pieces run over spaces, so the text is cut before and not after:
        # once white space is folded, as preprocess_text does too, or a page of it would push the words out.
        text = " ".join(comment.split())[: room * CHARACTERS_PER_PIECE].encode("utf-8", "replace").decode("utf-8")
        text = albert_tokenization.preprocess_text(text, lower=self.vocabulary.lower_case)
        pieces = self._tokenizer.tokenize(text)
        return [self._tokenizer.vocab.get(piece, self._unknown) for piece in pieces]

    def pad(self, encoded: Sequence[Sequence[int]]) -> TokenBatch:
        """Pad already encoded comments to the longest of them."""
        width = max(len(ids) for ids in encoded)
        ids = np.full((len(encoded), width), self._pad, np.int32)
        mask = np.zeros((len(encoded), width), np.int32)
        for row, comment in enumerate(encoded):
            ids[row, : len(comment)] = comment
            mask[row, : len(comment)] = 1
        return TokenBatch(ids, mask, np.zeros_like(ids))


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterable[npt.NDArray[np.intp]]:
    """Yield the row numbers of batches of comments of like length, so that little of a batch is padding."""
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
