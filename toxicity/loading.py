"""A version into memory: the network built, its weights set, its answers checked before it may serve or be trained on.

Not here: which version is wanted (versions.py), and when a process swaps (backend/live_model.py). The backend and the
worker load in this one way, so what the worker publishes is what the backend accepts.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from toxicity.calibration import Decision
from toxicity.examples import BEGINNING
from toxicity.labels import LABELS
from toxicity.manifest import Manifest
from toxicity.predicting import FloatArray
from toxicity.settings import EMBEDDED, Settings
from toxicity.starter import apply_starter, starter_file
from toxicity.versions import BASE_PROJECT, STARTER_NUMBER, LoadedVersion, ProjectVersions, VersionError

if TYPE_CHECKING:
    from toxicity.classifier import Classifier  # imports Keras, which serving does without
    from toxicity.devices import Devices
    from toxicity.serving import ServingClassifier

    Network = Classifier | ServingClassifier

logger = logging.getLogger(__name__)

GOLDEN_COMMENTS = (
    "Thank you for the careful edit.",
    "You are an idiot, go away.",
    "",
)
"""Fixed comments whose probabilities stand in every manifest: whoever loads a version must get the same ones."""

GOLDEN_TOLERANCE = 0.02  # what other processors and thread counts may differ by; a wrong weight differs by far more


class EncoderChangedError(VersionError):
    """A version was trained over another encoder than ENCODER names now: its weights cannot be used."""


def load_starter(settings: Settings, devices: "Devices | None" = None) -> LoadedVersion:
    """Build the classifier that comes with the code, with the starter's weights where the encoder is the embedded one."""
    classifier = _network(settings, devices)
    decision = Decision()
    trained = settings.encoder == EMBEDDED
    if trained:
        decision = apply_starter(classifier, starter_file())
        golden_outputs(classifier)  # warms it: the first request finds its graph built
    else:
        logger.warning(
            "There is no starter for ENCODER=%s: predictions mean nothing before the first training run.", settings.encoder
        )
    name = ProjectVersions(settings.models_dir(), BASE_PROJECT).name(STARTER_NUMBER)
    return LoadedVersion(name, STARTER_NUMBER, decision.thresholds, BEGINNING, classifier, decision.calibration, trained)


def load_newest(
    settings: Settings, versions: ProjectVersions, newest: int | None = None, devices: "Devices | None" = None
) -> LoadedVersion:
    """Load a version (None: the one in service), or else the newest accepted one before it that loads, or else the beginning.

    Raises:
        VersionError: which version is in service cannot be read.
    """
    newest = versions.current() if newest is None else newest
    for number in [newest, *(number for number in reversed(versions.accepted()) if number < newest)]:
        if number == STARTER_NUMBER:
            break
        try:
            return load_version(settings, versions, number, devices)
        except VersionError as error:
            logger.error("project %d: version %d cannot be used: %s", versions.project, number, error)
    return load_version(settings, versions, STARTER_NUMBER, devices)


def load_version(settings: Settings, versions: ProjectVersions, number: int, devices: "Devices | None" = None) -> LoadedVersion:
    """Load one version and check it; with devices, to be trained on them. 0 is what the project starts from.

    Raises:
        VersionError: it is damaged, answers otherwise than when it was published, or belongs to another encoder.
    """
    if number == STARTER_NUMBER:
        if versions.project == BASE_PROJECT:
            return load_starter(settings, devices)
        base = load_newest(settings, ProjectVersions(settings.models_dir(), BASE_PROJECT), devices=devices)
        return as_beginning(base)
    manifest, weights = versions.load(number)
    classifier = _network(settings, devices)
    if manifest.fingerprint != classifier.fingerprint():
        raise EncoderChangedError(
            f"Version {number} of project {versions.project} was trained over another encoder, {manifest.encoder!r}, "
            f"than ENCODER={settings.encoder}. Set ENCODER back to serve it, or let the project train again."
        )
    if manifest.labels != LABELS:
        raise VersionError(f"Version {number} of project {versions.project} has the labels {manifest.labels}, expected {LABELS}.")
    classifier.set_weights(weights)
    try:
        check_golden(classifier, manifest)
    except VersionError:
        # What bfloat16 changes depends on the weights.
        if not classifier.answer_exactly(weights):
            raise
        check_golden(classifier, manifest)
    return LoadedVersion(versions.name(number), number, manifest.thresholds, manifest.watermark, classifier, manifest.calibration)


def _network(settings: Settings, devices: "Devices | None") -> "Network":
    """The network to be trained on devices, or without them the one that serves."""
    if devices is None and settings.encoder == EMBEDDED:
        from toxicity.devices import answers_in_bfloat16
        from toxicity.serving import ServingClassifier

        return ServingClassifier(settings.max_length, answers_in_bfloat16())
    from toxicity.classifier import build_classifier

    return build_classifier(settings.encoder, settings.data_dir, settings.max_length, devices)


def as_beginning(base: LoadedVersion) -> LoadedVersion:
    """Return a base as what a project without versions of its own answers with, and starts from."""
    return replace(base, number=STARTER_NUMBER, watermark=BEGINNING)


def golden_outputs(classifier: "Network") -> tuple[tuple[float, ...], ...]:
    """Return the probabilities of GOLDEN_COMMENTS, as a manifest keeps them; computing them also warms the classifier.

    Raises:
        VersionError: they are not numbers: such weights must not be published.
    """
    outputs = classifier.predict(GOLDEN_COMMENTS)
    if not np.isfinite(outputs).all() or not classifier.is_finite():
        raise VersionError("The weights, or what they answer with, are no numbers: they are neither published nor served.")
    return tuple(tuple(float(value) for value in row) for row in outputs)


def check_golden(classifier: "Network", manifest: Manifest) -> None:
    """Compare a loaded version's answers with those in its manifest.

    Raises:
        VersionError: they differ by more than GOLDEN_TOLERANCE.
    """
    found = _array(golden_outputs(classifier))
    expected = _array(manifest.golden_outputs)
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not difference <= GOLDEN_TOLERANCE:
        raise VersionError(
            f"Version {manifest.number} answers otherwise than when it was published (probabilities differ by {difference:.3f}): "
            "it is not served. Roll back, or train again."
        )


def _array(rows: Sequence[Sequence[float]]) -> FloatArray:
    return np.array(rows, np.float32)
