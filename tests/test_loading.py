"""A version into memory: what loads answers as it did when it was published, and everything else is refused."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY_VOCABULARY, manifest_of, save_tiny_encoder
from toxicity.classifier import Classifier, build_classifier
from toxicity.examples import BEGINNING
from toxicity.labels import DEFAULT_THRESHOLDS
from toxicity.loading import GOLDEN_COMMENTS, EncoderChangedError, check_golden, golden_outputs, load_version
from toxicity.settings import Settings
from toxicity.versions import WEIGHTS_FILE, Manifest, ProjectVersions, VersionError

pytestmark = pytest.mark.tensorflow

COMMENTS = ("bread", "you fool", "")


@pytest.fixture
def tiny_settings(settings: Settings, tiny_encoder: Path) -> Settings:
    return replace(settings, encoder=str(tiny_encoder))


@pytest.fixture
def versions(settings: Settings) -> ProjectVersions:
    return ProjectVersions(settings.models_dir(), 7)


@pytest.fixture
def learned(tiny_settings: Settings) -> Classifier:
    """A classifier with weights that no fresh build has."""
    classifier = build_classifier(tiny_settings.encoder, tiny_settings.data_dir, tiny_settings.max_length)
    random = np.random.default_rng(1)
    classifier.set_weights(
        {name: random.normal(0, 1, value.shape).astype(np.float32) for name, value in classifier.weights().items()}
    )
    return classifier


def manifest_for(classifier: Classifier) -> Manifest:
    manifest = manifest_of(1, watermark="12-3", fingerprint=classifier.fingerprint())
    return replace(manifest, golden_outputs=golden_outputs(classifier), thresholds=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))


def publish(versions: ProjectVersions, classifier: Classifier, manifest: Manifest | None = None) -> None:
    versions.publish(manifest or manifest_for(classifier), classifier.weights(), "# card")


def test_a_published_version_answers_as_it_did(tiny_settings: Settings, versions: ProjectVersions, learned: Classifier) -> None:
    publish(versions, learned)
    loaded = load_version(tiny_settings, versions, versions.current())
    np.testing.assert_array_equal(loaded.classifier.predict(COMMENTS), learned.predict(COMMENTS))
    assert (loaded.number, loaded.name, loaded.watermark) == (1, "v1", "12-3")
    assert loaded.thresholds == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_byte_is_refused(place: float, tiny_settings: Settings, versions: ProjectVersions, learned: Classifier) -> None:
    publish(versions, learned)
    path = versions.folder(1) / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(VersionError, match="damaged"):
        load_version(tiny_settings, versions, 1)


def test_weights_that_answer_with_no_number_have_no_golden_outputs(learned: Classifier) -> None:
    weights = learned.weights()
    weights["dense_output/bias"] = np.array([0, 0, np.nan, 0, 0, 0], np.float32)
    learned.set_weights(weights)
    with pytest.raises(VersionError, match="are no numbers"):
        golden_outputs(learned)


def test_a_version_that_answers_otherwise_than_when_published_is_refused(
    tiny_settings: Settings, versions: ProjectVersions, learned: Classifier
) -> None:
    manifest = manifest_for(learned)
    first, *others = manifest.golden_outputs
    publish(versions, learned, replace(manifest, golden_outputs=((first[0] + 0.05, *first[1:]), *others)))
    with pytest.raises(VersionError, match=r"differ by 0\.050"):
        load_version(tiny_settings, versions, 1)


def test_what_processors_differ_by_is_let_through(learned: Classifier) -> None:
    manifest = manifest_for(learned)
    rows = tuple(tuple(value + 0.01 for value in row) for row in manifest.golden_outputs)
    check_golden(learned, replace(manifest, golden_outputs=rows))


@pytest.mark.parametrize("rows", [(), ((0.5,) * 6,), ((float("nan"),) * 6,) * 3])
def test_golden_outputs_that_cannot_be_compared_are_refused(rows: tuple[tuple[float, ...], ...], learned: Classifier) -> None:
    with pytest.raises(VersionError, match="it is not served"):
        check_golden(learned, replace(manifest_for(learned), golden_outputs=rows))


def test_a_version_of_another_encoder_is_refused_as_such(
    tiny_settings: Settings, versions: ProjectVersions, learned: Classifier, tmp_path: Path
) -> None:
    publish(versions, learned)
    swapped = (*TINY_VOCABULARY[:5], TINY_VOCABULARY[6], TINY_VOCABULARY[5], *TINY_VOCABULARY[7:])
    other = save_tiny_encoder(tmp_path / "other", vocabulary=swapped)
    with pytest.raises(EncoderChangedError, match=f"ENCODER={other}"):
        load_version(replace(tiny_settings, encoder=str(other)), versions, 1)


def test_a_version_with_other_labels_is_refused(tiny_settings: Settings, versions: ProjectVersions, learned: Classifier) -> None:
    manifest = manifest_for(learned)
    publish(versions, learned, replace(manifest, labels=manifest.labels[::-1]))
    with pytest.raises(VersionError, match="has the labels"):
        load_version(tiny_settings, versions, 1)


def test_a_project_without_versions_starts_from_the_starter(settings: Settings, shared_data_dir: Path) -> None:
    settings = replace(settings, data_dir=shared_data_dir, max_length=32)
    versions = ProjectVersions(settings.models_dir(), 7)
    loaded = load_version(settings, versions, versions.current())
    assert (loaded.number, loaded.name, loaded.watermark, loaded.thresholds) == (0, "v0", BEGINNING, DEFAULT_THRESHOLDS)
    kind, rude, _ = loaded.classifier.predict(GOLDEN_COMMENTS)
    assert kind[0] < 0.2
    assert rude[0] > 0.8


def test_another_encoder_starts_without_a_starter_and_says_so(
    tiny_settings: Settings, versions: ProjectVersions, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "toxicity.loading"):
        loaded = load_version(tiny_settings, versions, 0)
    assert "There is no starter for ENCODER=" in caplog.text
    assert loaded.classifier.predict(COMMENTS).shape == (3, 6)
