"""The starter that ships with the code, and how one is made, kept small, and applied."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import toxicity.starter_making
from toxicity.calibration import Calibration, Decision, undo_weights
from toxicity.classifier import Classifier, build_classifier
from toxicity.comments import LabelledComment
from toxicity.corpus import CorpusSplit
from toxicity.evaluation import choose, measures, targets_of
from toxicity.fine_tuning import Progress, TrainingPlan, positive_weights
from toxicity.labels import LABELS
from toxicity.predicting import FloatArray
from toxicity.settings import EMBEDDED
from toxicity.starter import apply_starter, expanded, starter_file
from toxicity.starter_making import RANK, compressed, make_starter

pytestmark = pytest.mark.tensorflow

CANARY = "quokka"
COMMENTS = ("You are a pathetic idiot, shut up.", "Thank you, that is a lovely photo of the old bridge.")


@pytest.fixture
def fresh(shared_data_dir: Path) -> Classifier:
    return build_classifier(EMBEDDED, shared_data_dir, 32)


def test_starter_tells_an_insult_from_a_friendly_comment(fresh: Classifier) -> None:
    decision = apply_starter(fresh, starter_file())
    probabilities = fresh.predict(COMMENTS)
    toxic, insult = LABELS.index("toxic"), LABELS.index("insult")
    assert probabilities[0, toxic] > 0.8
    assert probabilities[0, insult] > 0.5
    assert (probabilities[1] < 0.2).all()
    ticks = decision.calibration(probabilities) >= np.array(decision.thresholds)
    assert ticks[0, [toxic, insult]].all()
    assert not ticks[1].any()


def test_starter_file_is_under_a_megabyte_and_says_where_it_comes_from() -> None:
    assert starter_file().stat().st_size < 1_000_000
    with safe_open(starter_file(), "np") as opened:
        metadata = opened.metadata()
    assert metadata.keys() >= {"encoder_sha256", "comments", "held_out", "epochs", "learning_rate", "batch_size", "seed", "rank"}
    Calibration(tuple(json.loads(metadata["slopes"])), tuple(json.loads(metadata["offsets"])))
    assert len(json.loads(metadata["thresholds"])) == 6


@pytest.mark.parametrize("metadata", [{"encoder_sha256": "0" * 64}, None])
def test_a_starter_for_other_encoder_weights_is_refused(
    metadata: dict[str, str] | None, classifier: Classifier, tmp_path: Path
) -> None:
    save_file(load_file(starter_file()), tmp_path / "other.safetensors", metadata)
    before = classifier.weights()
    with pytest.raises(ValueError, match=r"other\.safetensors belongs to encoder weights"):
        apply_starter(classifier, tmp_path / "other.safetensors")
    for name, value in classifier.weights().items():
        np.testing.assert_array_equal(value, before[name])


def difference_of_rank(rank: int) -> tuple[dict[str, Any], dict[str, Any]]:
    random = np.random.default_rng(rank)

    def draw(*shape: int) -> Any:
        return random.normal(0, 0.1, shape).astype(np.float32)

    before = {
        "encoder/layer/kernel": draw(96, 64),
        "encoder/layer/bias": draw(64),
        "encoder/embeddings/weight": draw(50, 64),
        "encoder/pooler/kernel": draw(64, 64),
        "dense_output/kernel": draw(64, 6),
        "dense_output/bias": draw(6),
    }
    after = {name: value + draw(*value.shape) for name, value in before.items() if value.ndim == 1 or name.startswith("dense")}
    after["encoder/layer/kernel"] = before["encoder/layer/kernel"] + draw(96, rank) @ draw(rank, 64)
    return before, before | after


@pytest.mark.parametrize("rank", [0, 1, RANK])
def test_a_difference_of_low_rank_survives_compression(rank: int) -> None:
    before, after = difference_of_rank(rank)
    restored = expanded(before, compressed(before, after))
    assert restored.keys() == after.keys()
    for name, value in after.items():
        assert restored[name].dtype == np.float32
        np.testing.assert_allclose(restored[name], value, atol=1e-3, err_msg=name)


def test_compression_keeps_the_largest_directions_and_neither_embeddings_nor_pooler() -> None:
    before, after = difference_of_rank(RANK + 8)
    kept = compressed(before, after)
    assert not [name for name in kept if "embeddings" in name or "pooler" in name]
    assert {value.dtype for value in kept.values()} == {np.dtype(np.float16)}
    name = "encoder/layer/kernel"
    scale = np.linalg.svd(after[name] - before[name], compute_uv=False)
    error = np.linalg.svd(expanded(before, kept)[name] - after[name], compute_uv=False)
    assert error[0] == pytest.approx(scale[RANK], rel=0.02)


def test_a_starter_made_from_a_corpus_gives_a_fresh_classifier_what_was_learned(
    fresh: Classifier, shared_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toxicity.starter_making, "CORPUS_PLAN", TrainingPlan(epochs=1, learning_rate=2e-4, batch_size=20))
    file = tmp_path / "made.safetensors"
    rude, kind = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0.0,) * 6
    comments = [LabelledComment(f"You {CANARY}-brained fool number {number}", rude) for number in range(22)]
    comments += [LabelledComment(f"Thanks for edit number {number}", kind) for number in range(22)]
    split = CorpusSplit(comments[:10] + comments[-10:], comments[10:-10], left_out=3)
    before, steps, trained = fresh.predict(COMMENTS), list[int](), list[FloatArray]()

    def report(progress: Progress) -> None:
        steps.append(progress.step)
        trained.append(fresh.predict(COMMENTS))

    decision, found = make_starter(fresh, split, file, report)
    assert steps == [1]
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    assert (metadata["comments"], metadata["held_out"], metadata["epochs"], metadata["rank"]) == ("20", "24", "1", str(RANK))
    assert file.stat().st_size < 1_000_000
    assert CANARY.encode() not in file.read_bytes()

    again = build_classifier(EMBEDDED, shared_data_dir, 32)
    assert apply_starter(again, file) == decision
    learned = np.abs(trained[-1] - before).max()
    assert np.abs(again.predict(COMMENTS) - trained[-1]).max() < 0.2 * learned
    np.testing.assert_allclose(again.predict(COMMENTS), fresh.predict(COMMENTS), atol=1e-5)  # measured was what was written
    texts, targets = [comment.text for comment in split.held_out], targets_of(split.held_out)
    fallback = undo_weights(positive_weights(split.training))
    assert decision == choose(targets, fresh.predict(texts), fallback)
    assert decision.thresholds[0] != fallback.thresholds[0]
    assert decision.thresholds[3] == fallback.thresholds[3]  # no threat is among them to choose on
    assert found == measures(targets, decision.calibration(fresh.predict(texts)), decision.thresholds)
    assert (found["comments"], found["toxic.positives"]) == (24, 12)


def test_a_starters_decision_is_what_its_file_says(classifier: Classifier, shared_data_dir: Path, tmp_path: Path) -> None:
    file, own = tmp_path / "own.safetensors", Calibration((0.5,) * 6, (-1.0, 0.0, 1.0, 2.0, 3.0, 4.0))
    with safe_open(starter_file(), "np") as opened:
        metadata = opened.metadata()
    decided = {"slopes": list(own.slopes), "offsets": list(own.offsets), "thresholds": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    save_file(load_file(starter_file()), file, metadata | {name: json.dumps(values) for name, values in decided.items()})
    fresh = build_classifier(EMBEDDED, shared_data_dir, 32)
    assert apply_starter(fresh, file) == Decision(own, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
