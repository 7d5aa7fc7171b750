"""The classifier: what a comment's probabilities depend on, and its weights in and out."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import toxicity.classifier
from tests.conftest import TINY_VOCABULARY, save_tiny_encoder
from toxicity.classifier import Classifier, build_classifier
from toxicity.fingerprint import HEAD
from toxicity.labels import LABELS

pytestmark = pytest.mark.tensorflow

COMMENTS = ("Thanks!", "A much longer comment about the bread and the butter, which goes on and on.", "", "No.", "Please stop")


@pytest.fixture
def tiny(tiny_encoder: Path, tmp_path: Path) -> Classifier:
    return build_classifier(str(tiny_encoder), tmp_path, 32)


def test_a_comments_probabilities_do_not_depend_on_what_it_is_padded_beside(classifier: Classifier) -> None:
    encoded = [classifier.tokenizer.encode(comment) for comment in COMMENTS]
    together = classifier.predict_batch(classifier.tokenizer.pad(encoded))
    alone = [classifier.predict_batch(classifier.tokenizer.pad([ids]))[0] for ids in encoded]
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("comments_per_pass", [2, 3, 1024])
def test_answers_stand_in_the_order_of_the_comments(
    classifier: Classifier, comments_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toxicity.predicting, "COMMENTS_PER_PASS", comments_per_pass)
    alone = np.concatenate([classifier.predict([comment]) for comment in COMMENTS])
    assert np.abs(alone[:, None] - alone[None]).max(axis=2)[np.triu_indices(len(COMMENTS), 1)].min() > 1e-3
    np.testing.assert_allclose(classifier.predict(COMMENTS), alone, atol=1e-5)


def test_no_comments_give_no_rows(classifier: Classifier) -> None:
    assert classifier.predict([]).shape == (0, 6)


def test_probabilities_are_float32_from_0_to_1_and_the_same_each_time(classifier: Classifier) -> None:
    probabilities = classifier.predict(COMMENTS)
    assert probabilities.dtype == np.float32
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_array_equal(classifier.predict(COMMENTS), probabilities)


def test_the_head_is_six_sigmoids_named_dense_output(classifier: Classifier) -> None:
    head = classifier.model.layers[-1]
    assert head.name == HEAD == "dense_output"
    assert head.units == len(LABELS) == 6
    assert head.activation is tf_keras.activations.sigmoid
    assert [dropout.rate for dropout in classifier.model.layers if isinstance(dropout, tf_keras.layers.Dropout)] == [0.2]
    assert {name: value.shape for name, value in classifier.weights().items() if name.startswith(HEAD)} == {
        "dense_output/kernel": (384, 6),
        "dense_output/bias": (6,),
    }


def test_weights_set_in_another_build_give_the_same_answers(tiny: Classifier, tiny_encoder: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    weights = {name: random.normal(0, 1, value.shape).astype(np.float32) for name, value in tiny.weights().items()}
    answers = []
    for classifier in (tiny, build_classifier(str(tiny_encoder), tmp_path, 32)):
        classifier.set_weights(weights)
        for name, value in classifier.weights().items():
            np.testing.assert_array_equal(value, weights[name])
        answers.append(classifier.predict(COMMENTS))
    np.testing.assert_array_equal(answers[0], answers[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing name", "1 names differ, the first is 'encoder/layer/bias'"),
        ("unknown name", "1 names differ, the first is 'head'"),
        ("wrong shape", r"'dense_output/bias' has shape \(1,\), expected \(6,\)"),
    ],
)
def test_weights_of_another_network_are_refused_and_change_nothing(change: str, message: str, tiny: Classifier) -> None:
    before = tiny.weights()
    weights = {name: value + 1 for name, value in before.items()}
    if change == "missing name":
        del weights["encoder/layer/bias"]
    elif change == "unknown name":
        weights["head"] = np.zeros(1, np.float32)
    else:
        weights["dense_output/bias"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match=message):
        tiny.set_weights(weights)
    for name, value in tiny.weights().items():
        np.testing.assert_array_equal(value, before[name])


def test_two_builds_agree_in_fingerprint_and_in_the_fresh_head(tiny: Classifier, tiny_encoder: Path, tmp_path: Path) -> None:
    again = build_classifier(str(tiny_encoder), tmp_path, 32)
    assert again.fingerprint() == tiny.fingerprint()
    np.testing.assert_array_equal(again.predict(COMMENTS), tiny.predict(COMMENTS))


def test_fingerprint_tells_vocabulary_case_rule_and_network_apart(
    classifier: Classifier, tiny: Classifier, tmp_path: Path
) -> None:
    swapped = (*TINY_VOCABULARY[:5], TINY_VOCABULARY[6], TINY_VOCABULARY[5], *TINY_VOCABULARY[7:])
    handles = [
        save_tiny_encoder(tmp_path / "vocabulary", vocabulary=swapped),
        save_tiny_encoder(tmp_path / "case", lower_case=False),
    ]
    others = [build_classifier(str(handle), tmp_path, 32).fingerprint() for handle in handles]
    assert len({classifier.fingerprint(), tiny.fingerprint(), *others}) == 4


def test_a_network_whose_variables_share_a_name_is_refused(tiny: Classifier) -> None:
    model = SimpleNamespace(trainable_variables=[tf.Variable(0.0, name="kernel"), tf.Variable(1.0, name="kernel")])
    with pytest.raises(ValueError, match="2 trainable variables but only 1 different names"):
        Classifier(model, tiny.tokenizer).weights()
