"""A version into memory: the network built, its weights set, its answers checked before it may serve or be trained on.

Not here: which version is wanted (versions.py), and when a process swaps (backend/live_model.py). The backend and the
worker load in this one way, so what the worker publishes is what the backend accepts.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from toxicity.classifier import Classifier, build_classifier
from toxicity.examples import BEGINNING
from toxicity.labels import DEFAULT_THRESHOLDS, LABELS
from toxicity.settings import EMBEDDED, Settings
from toxicity.starter import apply_starter, starter_file
from toxicity.versions import STARTER_NUMBER, LoadedVersion, Manifest, ProjectVersions, VersionError

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


def load_starter(settings: Settings) -> LoadedVersion:
    """Build the classifier that every project starts from, with the starter's weights where the encoder is the embedded one."""
    classifier = build_classifier(settings.encoder, settings.data_dir, settings.max_length)
    if settings.encoder == EMBEDDED:
        apply_starter(classifier, starter_file())
    else:
        logger.warning(
            "There is no starter for ENCODER=%s: predictions mean nothing before the first training run.", settings.encoder
        )
    return LoadedVersion(STARTER_NUMBER, DEFAULT_THRESHOLDS, BEGINNING, classifier)


def load_version(settings: Settings, versions: ProjectVersions, number: int) -> LoadedVersion:
    """Load one version and check it; 0 is the starter.

    Raises:
        VersionError: it is damaged, answers otherwise than when it was published, or belongs to another encoder.
    """
    if number == STARTER_NUMBER:
        return load_starter(settings)
    manifest, weights = versions.load(number)
    classifier = build_classifier(settings.encoder, settings.data_dir, settings.max_length)
    if manifest.fingerprint != classifier.fingerprint():
        raise EncoderChangedError(
            f"Version {number} of project {versions.project} was trained over another encoder than ENCODER={settings.encoder}. "
            "Set ENCODER back to serve it, or let the project train again."
        )
    if manifest.labels != LABELS:
        raise VersionError(f"Version {number} of project {versions.project} has the labels {manifest.labels}, expected {LABELS}.")
    classifier.set_weights(weights)
    check_golden(classifier, manifest)
    return LoadedVersion(number, manifest.thresholds, manifest.watermark, classifier)


def golden_outputs(classifier: Classifier) -> tuple[tuple[float, ...], ...]:
    """Return the probabilities of GOLDEN_COMMENTS, as a manifest keeps them; computing them also warms the classifier.

    Raises:
        VersionError: they are not numbers: such weights must not be published.
    """
    outputs = classifier.predict(GOLDEN_COMMENTS)
    if not np.isfinite(outputs).all() or not all(np.isfinite(weight).all() for weight in classifier.weights().values()):
        raise VersionError("The weights, or what they answer with, are no numbers: they are neither published nor served.")
    return tuple(tuple(float(value) for value in row) for row in outputs)


def check_golden(classifier: Classifier, manifest: Manifest) -> None:
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


def _array(rows: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    return np.array(rows, np.float64)
