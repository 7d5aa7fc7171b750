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
TAIL_SHARE = 0.25  # of the word pieces of a comment that is too long
CHARACTERS_PER_PIECE = 64  # SentencePiece reads at most this many characters for each piece it may keep


@dataclass(frozen=True)
class Vocabulary:
    """Where an encoder's word pieces come from: a BERT vocabulary or a SentencePiece model, the case rule, and whose it is."""

    file: Path
    lower_case: bool
    sentence_piece: bool = False
    handle: str = ""

    def __str__(self) -> str:
        """Name it for a message: the file alone says little where TensorFlow Hub keeps what it downloaded."""
        return f"The vocabulary {self.file}" + (f" of the encoder {self.handle!r}" if self.handle else "")


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

    def __init__(self, vocabulary: Vocabulary, max_length: int, tail_share: float = TAIL_SHARE) -> None:
        """Load the vocabulary. max_length counts word pieces, [CLS] and [SEP] included; tail_share of them are a long one's end.

        Raises:
            ValueError: the vocabulary cannot be read or lacks [CLS], [SEP], [PAD] (<pad>) or [UNK] (<unk>), or max_length is
                under 3.
        """
        if max_length < 3:
            raise ValueError(f"The maximum length is {max_length} word pieces; [CLS], [SEP] and one more need 3.")
        self.max_length = max_length
        self.tail_share = tail_share
        self.vocabulary = vocabulary
        module = albert_tokenization if vocabulary.sentence_piece else bert_tokenization
        arguments: dict[str, Any] = {"vocab_file": str(vocabulary.file), "do_lower_case": vocabulary.lower_case}
        if vocabulary.sentence_piece:
            arguments["spm_model_file"] = str(vocabulary.file)
        try:
            self._tokenizer = module.FullTokenizer(**arguments)
        except RuntimeError as error:  # SentencePiece's, for whatever is no model of its
            raise ValueError(f"{vocabulary} cannot be read ({error}): get the encoder again.") from error
        pieces = self._tokenizer.vocab
        wanted = ("[CLS]", "[SEP]", "<pad>", "<unk>") if vocabulary.sentence_piece else ("[CLS]", "[SEP]", "[PAD]", "[UNK]")
        missing = [piece for piece in wanted if piece not in pieces]
        if missing:
            raise ValueError(
                f"{vocabulary} has {len(pieces)} entries but not {', '.join(missing)}: "
                "use the vocab_file (or SentencePiece model) that the encoder was trained with."
            )
        self._cls, self._sep, self._pad, self._unknown = (pieces[piece] for piece in wanted)
        self._cached_word = lru_cache(maxsize=CACHED_WORDS)(self._word_ids)

    def encode(self, comment: str) -> list[int]:
        """Return the comment's ids, [CLS] first and [SEP] last, at most max_length of them.

        Of a longer comment the beginning is kept and, for a quarter, the end: insults like to come last (docs/decisions/0012).
        """
        room = self.max_length - 2
        tail = round(room * self.tail_share)
        ids = self._sentence_ids(comment, room, tail) if self.vocabulary.sentence_piece else self._words_ids(comment, room, tail)
        return [self._cls, *ids, self._sep]

    def _words_ids(self, comment: str, room: int, tail: int) -> list[int]:
        # BERT's tokenizer treats words apart from each other, so taking them one by one gives the same ids. Only
        # these four characters may be split on: str.split() also splits on controls that BERT deletes from a word.
        words = re.findall(r"[^ \t\n\r]+", comment)
        ids: list[int] = []
        for word in words:
            ids.extend(self._cached_word_ids(word))
            if len(ids) > room:
                break
        else:
            return ids
        last: list[int] = []
        for word in reversed(words):
            if len(last) >= tail:
                break
            last = [*self._cached_word_ids(word), *last]
        return [*ids[: room - tail], *last[len(last) - tail :]]

    def _cached_word_ids(self, word: str) -> tuple[int, ...]:
        return self._cached_word(word) if len(word) <= CACHED_WORD_CHARACTERS else self._word_ids(word)

    def _word_ids(self, word: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(word)))

    def _sentence_ids(self, comment: str, room: int, tail: int) -> list[int]:
        # SentencePiece takes no lone surrogate, and its pieces run over spaces, so the text is cut before and not after:
        # once white space is folded, as preprocess_text does too, or a page of it would push the words out.
        text = " ".join(comment.split()).encode("utf-8", "replace").decode("utf-8")
        most = (room + 1) * CHARACTERS_PER_PIECE
        ids = self._piece_ids(text[:most])
        if len(ids) <= room and len(text) <= most:
            return ids
        last = self._piece_ids(text[max(0, len(text) - tail * CHARACTERS_PER_PIECE) :])
        last = last[max(0, len(last) - tail) :]
        return [*ids[: room - len(last)], *last]

    def _piece_ids(self, text: str) -> list[int]:
        text = albert_tokenization.preprocess_text(text, lower=self.vocabulary.lower_case)
        return [self._tokenizer.vocab.get(piece, self._unknown) for piece in self._tokenizer.tokenize(text)]

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
