"""A version into memory: what loads answers as it did when it was published, and everything else is refused."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import toxicity.loading
from tests.conftest import ACCEPTED, CARDS, REJECTED, TINY_VOCABULARY, manifest_of, save_tiny_encoder
from toxicity.calibration import IDENTITY, Calibration
from toxicity.classifier import Classifier, build_classifier
from toxicity.devices import Devices
from toxicity.examples import BEGINNING
from toxicity.labels import DEFAULT_THRESHOLDS
from toxicity.loading import GOLDEN_COMMENTS, EncoderChangedError, check_golden, golden_outputs, load_newest, load_version
from toxicity.manifest import Manifest
from toxicity.predicting import FloatArray
from toxicity.serving import ServingClassifier
from toxicity.settings import Settings
from toxicity.starter import apply_starter, starter_file
from toxicity.versions import BASE_PROJECT, WEIGHTS_FILE, ProjectVersions, VersionError

pytestmark = pytest.mark.tensorflow

COMMENTS = ("bread", "you fool", "")
CALIBRATION = Calibration((0.5, 1.0, 1.5, 2.0, 2.5, 3.0), (-1.0, 0.0, 1.0, 2.0, 0.5, -0.5))


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded is compared number for number here."""
    monkeypatch.setattr("toxicity.devices.has_bfloat16", lambda *given: False)


@pytest.fixture
def tiny_settings(settings: Settings, tiny_encoder: Path) -> Settings:
    return replace(settings, encoder=str(tiny_encoder))


@pytest.fixture
def versions(settings: Settings) -> ProjectVersions:
    return ProjectVersions(settings.models_dir(), 7)


@pytest.fixture
def base(settings: Settings) -> ProjectVersions:
    return ProjectVersions(settings.models_dir(), BASE_PROJECT)


@pytest.fixture
def learned(tiny_settings: Settings) -> Classifier:
    """A classifier with weights that no fresh build has."""
    classifier = build_classifier(tiny_settings.encoder, tiny_settings.data_dir, tiny_settings.max_length)
    random = np.random.default_rng(1)
    classifier.set_weights(
        {name: random.normal(0, 1, value.shape).astype(np.float32) for name, value in classifier.weights().items()}
    )
    return classifier


def manifest_for(classifier: Classifier | ServingClassifier | ServingClassifier) -> Manifest:
    manifest = manifest_of(1, watermark="12-3", fingerprint=classifier.fingerprint())
    thresholds = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    return replace(manifest, golden_outputs=golden_outputs(classifier), thresholds=thresholds, calibration=CALIBRATION)


def publish(versions: ProjectVersions, classifier: Classifier | ServingClassifier, manifest: Manifest | None = None) -> None:
    versions.publish(manifest or manifest_for(classifier), classifier.weights(), CARDS)


def damage(versions: ProjectVersions, number: int) -> None:
    (versions.folder(number) / WEIGHTS_FILE).write_bytes(b"damaged")


def test_a_published_version_answers_as_it_did(tiny_settings: Settings, versions: ProjectVersions, learned: Classifier) -> None:
    publish(versions, learned)
    loaded = load_version(tiny_settings, versions, versions.current())
    np.testing.assert_array_equal(loaded.classifier.predict(COMMENTS), learned.predict(COMMENTS))
    assert (loaded.number, loaded.name, loaded.watermark) == (1, "v1", "12-3")
    assert (loaded.thresholds, loaded.calibration) == ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), CALIBRATION)
    np.testing.assert_array_equal(loaded.predict(COMMENTS), CALIBRATION(learned.predict(COMMENTS)))


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


def test_weights_of_which_one_is_no_number_have_no_golden_outputs_whatever_they_answer(learned: Classifier) -> None:
    weights = learned.weights()
    weights["encoder/pooler/kernel"][0, 0] = np.nan  # has no part in the six labels
    learned.set_weights(weights)
    assert np.isfinite(learned.predict(COMMENTS)).all()
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
    assert (loaded.number, loaded.name, loaded.watermark) == (0, "v0", BEGINNING)
    kind, rude, _ = loaded.classifier.predict(GOLDEN_COMMENTS)
    assert kind[0] < 0.2
    assert rude[0] > 0.8
    kind, rude, _ = loaded.predict(GOLDEN_COMMENTS)
    assert kind[0] < loaded.thresholds[0] <= rude[0]


def test_a_project_without_versions_starts_from_the_bases_live_version(
    tiny_settings: Settings, versions: ProjectVersions, base: ProjectVersions, learned: Classifier
) -> None:
    publish(base, learned)
    publish(base, learned, replace(manifest_for(learned), number=2, verdict=REJECTED))
    loaded = load_version(tiny_settings, versions, 0)
    assert (loaded.number, loaded.name, loaded.watermark) == (0, "base-v1", BEGINNING)  # what the base learned is no event
    assert (loaded.thresholds, loaded.calibration) == ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), CALIBRATION)
    np.testing.assert_array_equal(loaded.classifier.predict(COMMENTS), learned.predict(COMMENTS))
    own = load_version(tiny_settings, base, 1)
    assert (own.number, own.name, own.watermark) == (1, "base-v1", "12-3")


def test_a_project_starts_from_the_base_before_a_damaged_one_and_before_all_from_the_starter(
    tiny_settings: Settings, versions: ProjectVersions, base: ProjectVersions, learned: Classifier
) -> None:
    for number in (1, 2):
        publish(base, learned, replace(manifest_for(learned), number=number))
    damage(base, 2)
    assert load_version(tiny_settings, versions, 0).name == "base-v1"
    damage(base, 1)
    beginning = load_version(tiny_settings, versions, 0)
    assert (beginning.number, beginning.name, beginning.calibration) == (0, "v0", IDENTITY)
    assert beginning.thresholds == DEFAULT_THRESHOLDS
    assert (beginning.classifier.predict(COMMENTS) != learned.predict(COMMENTS)).any()


def test_the_newest_that_loads_is_the_one_in_service_or_an_accepted_one_before_it(
    tiny_settings: Settings, versions: ProjectVersions, learned: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    for number, verdict in ((1, ACCEPTED), (2, REJECTED), (3, ACCEPTED), (4, ACCEPTED)):
        publish(versions, learned, replace(manifest_for(learned), number=number, verdict=verdict))
    assert load_newest(tiny_settings, versions).name == "v4"
    assert load_newest(tiny_settings, versions, 3).name == "v3"
    assert load_newest(tiny_settings, versions, 2).name == "v2"  # rejected, and asked for
    damage(versions, 3)
    versions.make_current(3)
    assert load_newest(tiny_settings, versions).name == "v1"
    assert "project 7: version 3 cannot be used" in caplog.text
    damage(versions, 1)
    assert load_newest(tiny_settings, versions).number == 0
    assert load_newest(tiny_settings, versions, 0).number == 0
    (versions.root / "current").write_text("garbage")
    with pytest.raises(VersionError, match="not two numbers"):
        load_newest(tiny_settings, versions)


def test_a_base_of_another_encoder_gives_way_to_the_beginning(
    tiny_settings: Settings, versions: ProjectVersions, base: ProjectVersions, learned: Classifier, tmp_path: Path
) -> None:
    publish(base, learned)
    other = save_tiny_encoder(tmp_path / "other", lower_case=False)
    beginning = load_version(replace(tiny_settings, encoder=str(other)), versions, 0)
    assert (beginning.number, beginning.name) == (0, "v0")


def test_a_version_loaded_to_be_trained_knows_its_devices(
    tiny_settings: Settings, versions: ProjectVersions, base: ProjectVersions, learned: Classifier
) -> None:
    devices = Devices(("CPU:0",), None)
    publish(versions, learned)
    for number in (0, 1):
        loaded = load_version(tiny_settings, versions, number, devices)
        assert isinstance(loaded.classifier, Classifier)
        assert loaded.classifier.devices is devices
    publish(base, learned)
    loaded = load_version(tiny_settings, versions, 0, devices)
    assert isinstance(loaded.classifier, Classifier)
    assert loaded.classifier.devices is devices


def test_another_encoder_starts_without_a_starter_and_says_so(
    tiny_settings: Settings, versions: ProjectVersions, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "toxicity.loading"):
        loaded = load_version(tiny_settings, versions, 0)
    assert "There is no starter for ENCODER=" in caplog.text
    assert loaded.classifier.predict(COMMENTS).shape == (3, 6)


@pytest.mark.parametrize("tolerance", [0.02, 1e-9])
def test_a_version_answers_in_bfloat16_if_that_changes_little_and_else_in_float32(
    tolerance: float, settings: Settings, versions: ProjectVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(settings, max_length=32)
    exact = ServingClassifier(32, bfloat16=False)
    apply_starter(exact, starter_file())
    kept: dict[str, FloatArray] = {}
    monkeypatch.setattr(exact, "weights", lambda: kept)
    recorder = ServingClassifier(32, bfloat16=False)
    monkeypatch.setattr(recorder, "set_weights", kept.update)
    apply_starter(recorder, starter_file())
    publish(versions, exact)
    monkeypatch.setattr("toxicity.devices.has_bfloat16", lambda *given: True)
    monkeypatch.setattr(toxicity.loading, "GOLDEN_TOLERANCE", tolerance)
    loaded = load_version(short, versions, 1).classifier
    difference = np.abs(loaded.predict(COMMENTS) - exact.predict(COMMENTS)).max()
    assert difference < 0.01
    assert (difference == 0) == (tolerance < 1e-3)
