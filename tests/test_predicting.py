"""Batches of comments of like length: every comment once, so many tokens at most, and little of it padding."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toxicity.predicting
from toxicity.labels import LABELS
from toxicity.predicting import PADDING_SHARE, PADDING_TOKENS, FloatArray, Predicting, batches_by_tokens

LENGTHS = st.lists(st.integers(2, 128), max_size=300)


@given(LENGTHS, st.integers(1, 4096))
def test_every_comment_is_in_one_batch_and_no_batch_has_too_many_tokens(lengths: list[int], most: int) -> None:
    batches = [batch.tolist() for batch in batches_by_tokens(lengths, most)]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        tokens = max(lengths[row] for row in batch) * len(batch)
        assert tokens <= most or len(batch) == 1
        assert tokens - sum(lengths[row] for row in batch) <= max(PADDING_TOKENS, PADDING_SHARE * tokens)


@given(LENGTHS)
def test_the_shortest_come_first(lengths: list[int]) -> None:
    in_order = [lengths[row] for batch in batches_by_tokens(lengths) for row in batch]
    assert in_order == sorted(lengths)


def test_comments_of_one_length_fill_a_batch() -> None:
    assert [len(batch) for batch in batches_by_tokens([64] * 70, 2048)] == [32, 32, 6]


class LengthNetwork(Predicting):
    """Answers with each comment's length, and notes the batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, comment: str) -> Sequence[int]:
        return range(len(comment))

    def predict_encoded(self, encoded: Sequence[Sequence[int]]) -> FloatArray:
        self.batches.append(len(encoded))
        return np.repeat(np.array([[len(ids)] for ids in encoded], np.float32), len(LABELS), axis=1)


@pytest.mark.parametrize("comments_per_pass", [1, 7, 1000])
def test_answers_are_in_the_comments_order_whatever_the_portions(comments_per_pass: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toxicity.predicting, "COMMENTS_PER_PASS", comments_per_pass)
    comments = ["x" * (1 + 37 * number % 101) for number in range(50)]
    network = LengthNetwork()
    assert network.predict(comments)[:, 0].tolist() == [len(comment) for comment in comments]
    assert max(network.batches) <= comments_per_pass
    assert network.predict([]).shape == (0, 6)
