"""Calibration: what turns a network's six probabilities into ones that mean what they say.

Not here: how it is chosen (evaluation.py). It belongs to a version, and is applied to every answer before any threshold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toxicity.labels import DEFAULT_THRESHOLDS, LABELS

CLIPPED = 1e-6  # probabilities are kept so far from 0 and 1 before their logarithm is taken


@dataclass(frozen=True)
class Calibration:
    """Platt scaling: for each label, in LABELS' order, probability -> sigmoid(slope * logit(probability) + offset).

    Slopes are positive, so that within a label the order of comments, and with it every ROC AUC, stays as it was.
    """

    slopes: tuple[float, ...] = (1.0,) * len(LABELS)
    offsets: tuple[float, ...] = (0.0,) * len(LABELS)

    def __post_init__(self) -> None:
        """Check both.

        Raises:
            ValueError: there are not six of each, or they are no numbers, or a slope is not positive.
        """
        values = np.array([self.slopes, self.offsets], np.float64)
        if values.shape != (2, len(LABELS)) or not np.isfinite(values).all() or not (values[0] > 0).all():
            raise ValueError(f"The calibration {self.slopes}, {self.offsets} is none: it takes six positive slopes, six offsets.")

    def __call__(self, probabilities: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return calibrated probabilities for probabilities, both of shape (comments, 6)."""
        if self == IDENTITY:
            return probabilities.astype(np.float32, copy=False)
        scores = np.array(self.slopes) * logit(probabilities) + np.array(self.offsets)
        calibrated: npt.NDArray[np.float32] = (1 / (1 + np.exp(-scores))).astype(np.float32)
        return calibrated


def logit(probabilities: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return log(p / (1 - p)), finite for 0 and 1 too."""
    clipped = np.clip(probabilities.astype(np.float64), CLIPPED, 1 - CLIPPED)
    scores: npt.NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return scores


IDENTITY = Calibration()


def undo_weights(weights: Sequence[float]) -> "Decision":
    """Return the decision for a network whose positives were weighted in training, where nothing better is known.

    A weight multiplies the odds that the network learns, so it is divided out again; ticks stay where the network's own
    probability is a half, which is about where a rare label's F1 is best.
    """
    offsets = tuple(round(-math.log(weight), 6) for weight in weights)
    return Decision(Calibration(offsets=offsets), tuple(round(1 / (1 + weight), 4) for weight in weights))


@dataclass(frozen=True)
class Decision:
    """What a version adds to its network's answers: the calibration, and the threshold of each label on top of it."""

    calibration: Calibration = IDENTITY
    thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS
