"""The verdict on a candidate: whether it may replace the live version, judged on comments that neither has learned.

Not here: the measures (evaluation.py), which comments are held out (hold_out.py), and what is done with the verdict
(worker/training.py). docs/decisions/0011 says why these rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toxicity.evaluation import FloatArray, fit_calibration, log_losses, roc_aucs
from toxicity.labels import LABELS
from toxicity.manifest import Verdict

LEAST_HELD_OUT = 30  # comments, and with them a positive of some label; fewer are too few to judge by
LEAST_FOR_AUC = 5  # positives, and negatives, without which a label's AUC is no evidence
RESAMPLES = 200
FALLBACK_MARGIN = 0.02  # mean ROC AUC that may be lost on the reference comments: they are ours, and not the project's
CONSTANT = 1e-4  # a label whose probabilities vary less says the same of every comment
COLLAPSED_AUC = 0.55

HOLD_OUT, REFERENCE = "hold-out", "reference"


@dataclass(frozen=True)
class Yardstick:
    """Labelled comments to judge on: their targets, shape (comments, 6), nan where not asked, and what they are.

    `held_out` is how many held-out comments there are, be they judged on or too few.
    """

    targets: FloatArray
    judged_on: str
    held_out: int


def enough_to_judge(targets: FloatArray) -> bool:
    """Whether a hold-out can tell a worse version from a better one at all."""
    return len(targets) >= LEAST_HELD_OUT and bool(np.nansum(targets) > 0)


def judge(yardstick: Yardstick, candidate: npt.NDArray[Any], rivals: dict[str, npt.NDArray[Any]]) -> Verdict:
    """Judge a candidate's probabilities, shape (comments, 6), against those of each rival (name -> probabilities).

    It is rejected where it is broken, or worse than a rival by more than one standard error of their paired difference.
    On a hold-out both loss and AUC count, on the reference comments AUC alone, with a margin of FALLBACK_MARGIN.
    """
    targets = yardstick.targets
    reasons = _broken(targets, candidate, rivals)
    if not reasons:
        for name, rival in rivals.items():
            if yardstick.judged_on == HOLD_OUT:
                reasons += _worse_loss(targets, candidate, name, rival)
            least_margin = 0.0 if yardstick.judged_on == HOLD_OUT else FALLBACK_MARGIN
            reasons += _worse_auc(targets, candidate, name, rival, least_margin)
    accepted = not reasons
    if accepted:
        reasons = [f"not worse than {' and '.join(rivals)}"]
    if yardstick.judged_on == REFERENCE:
        reasons.append(f"{yardstick.held_out} held-out comments were too few to judge by; the reference comments judged")
    return Verdict(accepted, tuple(reasons), yardstick.judged_on, len(targets))


def is_better(yardstick: Yardstick, candidate: npt.NDArray[Any], rivals: dict[str, npt.NDArray[Any]]) -> bool:
    """Whether a candidate's loss on a hold-out is lower than every rival's, be it by chance."""
    if yardstick.judged_on != HOLD_OUT:
        return False
    ours, *theirs = (_mean_loss(yardstick.targets, given) for given in (candidate, *rivals.values()))
    return ours < min(theirs, default=float("inf"))


def _mean_loss(targets: FloatArray, given: npt.NDArray[Any]) -> float:
    return float(np.nanmean(log_losses(targets, fit_calibration(targets, given)(given))))


def _broken(targets: FloatArray, candidate: npt.NDArray[Any], rivals: dict[str, npt.NDArray[Any]]) -> list[str]:
    if not np.isfinite(candidate).all():
        return [f"{int((~np.isfinite(candidate)).sum())} of its probabilities are no numbers"]
    reasons = []
    aucs = _trusted_aucs(targets, candidate)
    rivals_aucs = [_trusted_aucs(targets, rival) for rival in rivals.values()]
    for column, label in enumerate(LABELS):
        varied = any(np.ptp(rival[:, column]) > CONSTANT for rival in rivals.values())
        if varied and np.ptp(candidate[:, column]) <= CONSTANT:
            reasons.append(f"it says {candidate[0, column]:.3f} for {label} of every comment")
        elif aucs.get(label, 1.0) < COLLAPSED_AUC <= max((found.get(label, 0.0) for found in rivals_aucs), default=0.0):
            reasons.append(f"{label} collapsed: its ROC AUC is {aucs[label]:.3f}")
    return reasons


def _worse_loss(targets: FloatArray, candidate: npt.NDArray[Any], name: str, rival: npt.NDArray[Any]) -> list[str]:
    # Each calibrated on these very comments: fair to both, and what a recalibration would mend is no reason to reject.
    losses = [log_losses(targets, fit_calibration(targets, given)(given)) for given in (candidate, rival)]
    difference = losses[0] - losses[1]
    difference = difference[np.isfinite(difference)]
    worse, margin = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))
    if worse <= margin:
        return []
    return [f"its log loss is {np.nanmean(losses[0]):.4f}, that of {name} {np.nanmean(losses[1]):.4f} (margin {margin:.4f})"]


def _worse_auc(
    targets: FloatArray, candidate: npt.NDArray[Any], name: str, rival: npt.NDArray[Any], least_margin: float
) -> list[str]:
    labels = _trusted_aucs(targets, candidate).keys()
    if not labels:
        return []

    def mean_aucs(rows: Sequence[int] | npt.NDArray[np.intp]) -> tuple[float, float]:
        both = [roc_aucs(targets[rows], given[rows]) for given in (candidate, rival)]
        present = [label for label in labels if label in both[0]]
        means = [float(np.mean([found[label] for label in present])) if present else 0.5 for found in both]
        return means[0], means[1]

    generator = np.random.default_rng(0)  # the same comments give the same verdict
    everything = np.arange(len(targets))
    resampled = [mean_aucs(generator.choice(everything, len(everything))) for _ in range(RESAMPLES)]
    ours, theirs = mean_aucs(everything)
    margin = max(least_margin, float(np.std([mine - other for mine, other in resampled])))
    if ours >= theirs - margin:
        return []
    return [f"its mean ROC AUC over {', '.join(labels)} is {ours:.4f}, that of {name} {theirs:.4f} (margin {margin:.4f})"]


def _trusted_aucs(targets: FloatArray, probabilities: npt.NDArray[Any]) -> dict[str, float]:
    aucs = roc_aucs(targets, probabilities)
    return {
        label: auc
        for label, auc in aucs.items()
        if min((targets[:, LABELS.index(label)] == value).sum() for value in (0, 1)) >= LEAST_FOR_AUC
    }
