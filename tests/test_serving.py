"""The network as it serves: the same answers as the one that was trained, whatever numbers it computes in."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxicity.bert import embedded_weights
from toxicity.classifier import Classifier, build_classifier
from toxicity.corpus import read_corpus, reference_file
from toxicity.fingerprint import HEAD
from toxicity.serving import FEW, WIDER_BY, WIDTH_STEP, WIDTH_STEP_OF_FEW, ServingClassifier, packed
from toxicity.starter import apply_starter, starter_file

pytestmark = pytest.mark.tensorflow

LENGTH = 64
COMMENTS = [*(comment.text for comment in read_corpus(reference_file()).comments), "", "rye " * 500, "🥖 Brötchen", "half \ud83d"]


@pytest.fixture(scope="module")
def trained(shared_data_dir: Path) -> Classifier:
    classifier = build_classifier("embedded", shared_data_dir, LENGTH)
    apply_starter(classifier, starter_file())
    return classifier


@pytest.fixture(scope="module")
def serving() -> ServingClassifier:
    serving = ServingClassifier(LENGTH, bfloat16=False)
    apply_starter(serving, starter_file())
    return serving


def test_it_has_the_fingerprint_of_the_network_that_was_trained(trained: Classifier, serving: ServingClassifier) -> None:
    assert serving.fingerprint() == trained.fingerprint()
    assert list(serving.weights()) == list(trained.weights())


def test_in_float32_it_answers_alike(trained: Classifier, serving: ServingClassifier) -> None:
    np.testing.assert_allclose(serving.predict(COMMENTS), trained.predict(COMMENTS), atol=2e-5)


def test_in_bfloat16_it_answers_within_a_hundredth(trained: Classifier) -> None:
    quick = ServingClassifier(LENGTH, bfloat16=True)
    quick.set_weights(trained.weights())
    difference = np.abs(quick.predict(COMMENTS) - trained.predict(COMMENTS))
    assert 0 < difference.max() < 0.01


@pytest.mark.parametrize(("bfloat16", "difference"), [(False, 2e-5), (True, 8e-3)])
def test_comments_in_one_row_do_not_see_each_other(serving: ServingClassifier, bfloat16: bool, difference: float) -> None:
    network = ServingClassifier(LENGTH, bfloat16)
    apply_starter(network, starter_file())
    alone = np.concatenate([serving.predict([comment]) for comment in COMMENTS[-20:]])
    encoded = [network.encode(comment) for comment in COMMENTS[-20:]]
    assert packed(encoded).shape[1] < len(encoded)
    np.testing.assert_allclose(network.predict_encoded(encoded), alone, atol=difference)


def test_more_word_pieces_than_there_are_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="MAX_LENGTH=600 word pieces; BERT has 512"):
        ServingClassifier(600, bfloat16=False)


def test_it_answers_in_float32_where_that_is_asked_for(trained: Classifier, serving: ServingClassifier) -> None:
    network = ServingClassifier(LENGTH, bfloat16=True)
    network.set_weights(trained.weights())
    assert network.answer_exactly(trained.weights())
    assert not network.answer_exactly(trained.weights())
    np.testing.assert_allclose(network.predict(COMMENTS), serving.predict(COMMENTS), atol=2e-5)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=40))
def test_every_word_piece_stands_once_in_a_row_that_has_room(lengths: list[int]) -> None:
    encoded = [[1000 * number + place for place in range(length)] for number, length in enumerate(lengths)]
    words, places, comments = packed(encoded)
    assert words.shape[1] - max(lengths) in range(WIDER_BY)
    assert words.shape[1] % (WIDTH_STEP if sum(lengths) > FEW else WIDTH_STEP_OF_FEW) == 0
    for number, ids in enumerate(encoded):
        there = comments == number
        assert there.any(axis=1).sum() == 1
        assert words[there].tolist() == ids
        assert places[there].tolist() == list(range(len(ids)))
    assert (comments == -1).sum() == words.size - sum(lengths)


def test_short_comments_share_a_row() -> None:
    assert packed([[7] * 64, [7] * 10, [7] * 50, [7] * 4]).shape == (3, 2, 64)


def test_a_row_is_wider_than_its_longest_comment_where_that_leaves_less_padding() -> None:
    assert packed([[7] * 60, [7] * 40, [7] * 32]).shape == (3, 2, 80)
    assert packed([[7] * 60]).shape == (3, 1, 64)
    assert packed([[7] * 66] * 4).shape == (3, 4, 68)


def test_another_version_is_traced_no_second_time(serving: ServingClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    serving.predict(["bread"])
    traced: list[int] = []
    monkeypatch.setattr("toxicity.serving.bert_averages", lambda *given, **named: traced.append(1))
    another = ServingClassifier(LENGTH, bfloat16=False)
    another.set_weights(serving.weights() | {f"{HEAD}/bias": np.full(6, 3.0, np.float32)})
    assert another.predict(["bread", "more bread " * 20]).min() > 0.9
    assert traced == []


def test_weights_of_another_network_are_refused(serving: ServingClassifier) -> None:
    fresh = ServingClassifier(LENGTH, bfloat16=False)
    weights = serving.weights()
    with pytest.raises(ValueError, match=f"1 names differ, the first is '{HEAD}/bias'"):
        fresh.set_weights({name: value for name, value in weights.items() if name != f"{HEAD}/bias"})
    with pytest.raises(ValueError, match=f"'{HEAD}/kernel' has shape"):
        fresh.set_weights(weights | {f"{HEAD}/kernel": np.zeros((3, 6), np.float32)})


def test_a_weight_that_is_no_number_is_seen(serving: ServingClassifier) -> None:
    assert serving.is_finite()
    fresh = ServingClassifier(LENGTH, bfloat16=True)
    fresh.set_weights(serving.weights() | {f"{HEAD}/bias": np.full(6, np.nan, np.float32)})
    assert not fresh.is_finite()


def test_pretrained_kernels_take_the_shape_of_in_and_out() -> None:
    weights = embedded_weights()
    assert weights["encoder.layer.0.intermediate.dense.kernel"].shape == (384, 1536)
    assert "embeddings.position_ids" not in weights
