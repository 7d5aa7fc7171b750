"""From comments to probabilities in batches: what every network that answers has in common.

Not here: the networks (classifier.py, serving.py), and batches over several requests (backend/batching.py).
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from toxicity.labels import LABELS

if TYPE_CHECKING:
    from toxicity.tokenizer import Tokenizer  # imports bert-for-tf2

FloatArray = npt.NDArray[np.float32]

TOKENS_PER_BATCH = 2048  # padding included: as fast as any larger number, and no request waits long for the batch before its own
PADDING_SHARE = 0.25  # of a batch at most, where it has more than a few dozen tokens of it
PADDING_TOKENS = 64
COMMENTS_PER_PASS = 1024  # tokenized at once: keeps memory flat whatever a request's size


class Predicting(abc.ABC):
    """A network that answers. Safe to use from several threads."""

    tokenizer: "Tokenizer"

    @abc.abstractmethod
    def predict_encoded(self, encoded: Sequence[Sequence[int]]) -> FloatArray:
        """Return probabilities of shape (len(encoded), 6) for comments of any lengths, computed together where that is faster."""

    def answer_exactly(self, weights: Mapping[str, FloatArray]) -> bool:
        """Compute in float32 from now on, with its weights given once more; return whether it did otherwise before."""
        return False

    def encode(self, comment: str) -> Sequence[int]:
        """Return a comment's word piece ids: what predict_encoded takes."""
        return self.tokenizer.encode(comment)

    def predict(self, comments: Sequence[str]) -> FloatArray:
        """Return probabilities of shape (len(comments), 6), float32, columns in LABELS' order."""
        probabilities = np.empty((len(comments), len(LABELS)), np.float32)
        for start in range(0, len(comments), COMMENTS_PER_PASS):
            encoded = [self.encode(comment) for comment in comments[start : start + COMMENTS_PER_PASS]]
            for rows in batches_by_tokens([len(ids) for ids in encoded]):
                probabilities[start + rows] = self.predict_encoded([encoded[row] for row in rows])
        return probabilities


def batches_by_tokens(lengths: Sequence[int], most: int = TOKENS_PER_BATCH) -> Iterator[npt.NDArray[np.intp]]:
    """Yield the row numbers of batches, the shortest comments first, each of at most so many tokens with its padding.

    A comment that is longer than `most` is a batch of its own.
    """
    order = np.argsort(lengths, kind="stable")
    start = total = 0
    for end, row in enumerate(order):
        length = int(lengths[row])
        tokens = length * (end - start + 1)
        padding = tokens - total - length
        if end > start and (tokens > most or padding > max(PADDING_TOKENS, PADDING_SHARE * tokens)):
            yield order[start:end]
            start, total = end, 0
        total += length
    if start < len(order):
        yield order[start:]
