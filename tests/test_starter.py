"""The starter that ships with the code, and how one is made, kept small, and applied."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import toxicity.starter
from toxicity.classifier import Classifier, build_classifier
from toxicity.fine_tuning import Progress, TrainingPlan
from toxicity.labels import LABELS
from toxicity.settings import EMBEDDED
from toxicity.starter import RANK, _compressed, _expanded, apply_starter, make_starter, starter_file

pytestmark = pytest.mark.tensorflow

CANARY = "quokka"
COMMENTS = ("You are a pathetic idiot, shut up.", "Thank you, that is a lovely photo of the old bridge.")


@pytest.fixture
def fresh(shared_data_dir: Path) -> Classifier:
    return build_classifier(EMBEDDED, shared_data_dir, 32)


def test_starter_tells_an_insult_from_a_friendly_comment(fresh: Classifier) -> None:
    apply_starter(fresh, starter_file())
    probabilities = fresh.predict(COMMENTS)
    toxic, insult = LABELS.index("toxic"), LABELS.index("insult")
    assert probabilities[0, toxic] > 0.8
    assert probabilities[0, insult] > 0.5
    assert (probabilities[1] < 0.2).all()


def test_starter_file_is_under_a_megabyte_and_says_where_it_comes_from() -> None:
    assert starter_file().stat().st_size < 1_000_000
    with safe_open(starter_file(), "np") as opened:
        assert opened.metadata().keys() >= {"encoder_sha256", "comments", "epochs", "learning_rate", "batch_size", "seed", "rank"}


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
    expanded = _expanded(before, _compressed(before, after))
    assert expanded.keys() == after.keys()
    for name, value in after.items():
        assert expanded[name].dtype == np.float32
        np.testing.assert_allclose(expanded[name], value, atol=1e-3, err_msg=name)


def test_compression_keeps_the_largest_directions_and_neither_embeddings_nor_pooler() -> None:
    before, after = difference_of_rank(RANK + 8)
    kept = _compressed(before, after)
    assert not [name for name in kept if "embeddings" in name or "pooler" in name]
    assert {value.dtype for value in kept.values()} == {np.dtype(np.float16)}
    name = "encoder/layer/kernel"
    scale = np.linalg.svd(after[name] - before[name], compute_uv=False)
    error = np.linalg.svd(_expanded(before, kept)[name] - after[name], compute_uv=False)
    assert error[0] == pytest.approx(scale[RANK], rel=0.02)


def test_a_starter_made_from_a_csv_gives_a_fresh_classifier_what_was_learned(
    fresh: Classifier, shared_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toxicity.starter, "PLAN", TrainingPlan(epochs=1, learning_rate=2e-4, batch_size=20))
    corpus, file = tmp_path / "corpus.csv", tmp_path / "made.safetensors"
    with corpus.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["id", "comment_text", *LABELS])
        for number in range(10):
            writer.writerow([number, f"You {CANARY}-brained fool number {number}", 1, 0, 0, 0, 1, 0])
            writer.writerow([number, f"Thanks for edit number {number}", 0, 0, 0, 0, 0, 0])
    before, reports = fresh.predict(COMMENTS), list[Progress]()
    metadata = make_starter(fresh, corpus, file, reports.append)
    assert [progress.step for progress in reports] == [1]
    assert (metadata["comments"], metadata["epochs"], metadata["rank"]) == ("20", "1", str(RANK))
    assert file.stat().st_size < 1_000_000
    assert CANARY.encode() not in file.read_bytes()
    again = build_classifier(EMBEDDED, shared_data_dir, 32)
    apply_starter(again, file)
    learned = np.abs(fresh.predict(COMMENTS) - before).max()
    assert np.abs(again.predict(COMMENTS) - fresh.predict(COMMENTS)).max() < 0.2 * learned
