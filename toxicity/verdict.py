"""The verdict on a candidate: whether it may replace the live version, judged on comments that neither has learned.

Not here: the measures (evaluation.py), which comments are held out (hold_out.py), and what is done with the verdict
(worker/training.py). docs/decisions/0011 says why these rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toxicity.calibration import Decision
from toxicity.evaluation import FloatArray, choose, log_losses, roc_aucs
from toxicity.labels import LABELS
from toxicity.manifest import Verdict

LEAST_HELD_OUT = 30  # comments, and with them a positive of some label; fewer are too few to judge by
LEAST_FOR_AUC = 5  # positives, and negatives, without which a label's AUC is no evidence
RESAMPLES = 200
AUC_MARGIN, F1_MARGIN = 0.02, 0.05  # what may be lost on the reference comments: they are ours, and not the project's
CONSTANT = 1e-4  # a label whose probabilities vary less says the same of every comment
CLEARLY = 0.99
COLLAPSED_AUC, COLLAPSE = 0.55, 0.1  # under it, and so much under what it was
MARGIN = 1.65  # standard errors: each test rejects one of twenty equally good versions

HOLD_OUT, REFERENCE = "hold-out", "reference"


@dataclass(frozen=True)
class Yardstick:
    """Labelled comments to judge on: their targets, shape (comments, 6), nan where not asked, and what they are.

    `held_out` is how many held-out comments there are, be they judged on or too few. Thresholds are chosen for `precision_floor`.
    """

    targets: FloatArray
    judged_on: str
    held_out: int
    precision_floor: float = 0.0


def enough_to_judge(targets: FloatArray) -> bool:
    """Whether a hold-out can tell a worse version from a better one at all."""
    return len(targets) >= LEAST_HELD_OUT and bool(np.nansum(targets) > 0)


@dataclass(frozen=True)
class Answers:
    """What a version says of the comments: its network's probabilities, shape (comments, 6), and the decision on top."""

    probabilities: npt.NDArray[Any]
    decision: Decision = Decision()

    def as_served(self, yardstick: Yardstick) -> "Answers":
        """Return them with the decision that they would be served with; on a hold-out one is chosen for every version anew."""
        if yardstick.judged_on != HOLD_OUT:
            return self
        return Answers(
            self.probabilities, choose(yardstick.targets, self.probabilities, self.decision, yardstick.precision_floor)
        )

    def losses(self, targets: FloatArray) -> FloatArray:
        """Return each comment's loss as served."""
        return log_losses(targets, self.decision.calibration(self.probabilities))

    def ticks(self) -> npt.NDArray[np.bool_]:
        """Return which labels are ticked, shape (comments, 6)."""
        ticked: npt.NDArray[np.bool_] = self.decision.calibration(self.probabilities) >= np.array(self.decision.thresholds)
        return ticked


def judge(yardstick: Yardstick, candidate: Answers, rivals: Mapping[str, Answers]) -> Verdict:
    """Judge a candidate's answers against those of each rival (by name), all of them as they would be served.

    It is rejected where it is broken, or worse than a rival by more than the margin: MARGIN standard errors of their paired
    difference. On a hold-out loss, AUC and the F1 of ticks count; on the reference comments AUC and F1, with margins of
    AUC_MARGIN and F1_MARGIN at least.
    """
    targets = yardstick.targets
    reasons = _broken(targets, candidate.probabilities, [rival.probabilities for rival in rivals.values()])
    if not reasons:
        on_hold_out = yardstick.judged_on == HOLD_OUT
        served = candidate.as_served(yardstick)
        for name, each in rivals.items():
            rival = each.as_served(yardstick)
            if on_hold_out:
                reasons += _worse_loss(targets, served, name, rival)
            reasons += _worse_auc(targets, served.probabilities, name, rival.probabilities, 0.0 if on_hold_out else AUC_MARGIN)
            reasons += _worse_ticks(targets, served, name, rival, 0.0 if on_hold_out else F1_MARGIN)
    accepted = not reasons
    if accepted:
        reasons = [f"not worse than {' and '.join(rivals)}"]
    if yardstick.judged_on == REFERENCE:
        reasons.append(f"{yardstick.held_out} held-out comments were too few to judge by; the reference comments judged")
    return Verdict(accepted, tuple(reasons), yardstick.judged_on, len(targets))


def is_better(yardstick: Yardstick, candidate: Answers, rivals: Mapping[str, Answers]) -> bool:
    """Whether a candidate's loss on a hold-out is clearly lower than every rival's: by a hundredth."""
    if yardstick.judged_on != HOLD_OUT:
        return False
    everyone = (candidate, *rivals.values())
    ours, *theirs = (float(np.nanmean(each.as_served(yardstick).losses(yardstick.targets))) for each in everyone)
    return ours < CLEARLY * min(theirs, default=float("inf"))


def labels_without_evidence(targets: FloatArray) -> list[str]:
    """Return the labels that were asked for but have too few positives, or negatives, to judge by."""
    counts = [[int((targets[:, column] == value).sum()) for value in (0, 1)] for column in range(len(LABELS))]
    return [label for label, both in zip(LABELS, counts, strict=True) if sum(both) and min(both) < LEAST_FOR_AUC]


def _broken(targets: FloatArray, candidate: npt.NDArray[Any], rivals: Sequence[npt.NDArray[Any]]) -> list[str]:
    if not np.isfinite(candidate).all():
        return [f"{int((~np.isfinite(candidate)).sum())} of its probabilities are no numbers"]
    reasons = []
    aucs = _trusted_aucs(targets, candidate)
    rivals_aucs = [_trusted_aucs(targets, rival) for rival in rivals]
    for column, label in enumerate(LABELS):
        if not np.isfinite(targets[:, column]).any():
            continue
        varied = any(np.ptp(rival[:, column]) > CONSTANT for rival in rivals)
        best = max((found.get(label, 0.0) for found in rivals_aucs), default=0.0)
        if varied and np.ptp(candidate[:, column]) <= CONSTANT:
            reasons.append(f"it says {candidate[0, column]:.3f} for {label} of every comment")
        elif aucs.get(label, 1.0) < min(COLLAPSED_AUC, best - COLLAPSE):
            reasons.append(f"{label} collapsed: its ROC AUC is {aucs[label]:.3f}, and was {best:.3f}")
    return reasons


def _worse_loss(targets: FloatArray, candidate: Answers, name: str, rival: Answers) -> list[str]:
    losses = [each.losses(targets) for each in (candidate, rival)]
    difference = losses[0] - losses[1]
    difference = difference[np.isfinite(difference)]
    worse, margin = float(difference.mean()), float(MARGIN * difference.std(ddof=1) / np.sqrt(len(difference)))
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
    margin = max(least_margin, MARGIN * float(np.std([mine - other for mine, other in resampled])))
    if ours >= theirs - margin:
        return []
    return [f"its mean ROC AUC over {', '.join(labels)} is {ours:.4f}, that of {name} {theirs:.4f} (margin {margin:.4f})"]


def _worse_ticks(targets: FloatArray, candidate: Answers, name: str, rival: Answers, least_margin: float) -> list[str]:
    asked, positive = np.isfinite(targets), targets == 1
    # For each version and comment: ticks that are right, ticks, and positives, over the asked labels.
    counts = [
        np.stack([(ticks & positive).sum(axis=1), (ticks & asked).sum(axis=1), positive.sum(axis=1)], axis=1)
        for ticks in (candidate.ticks(), rival.ticks())
    ]

    def f1_scores(rows: npt.NDArray[np.intp]) -> tuple[float, float]:
        sums = [each[rows].sum(axis=0) for each in counts]
        ours, theirs = (float(2 * hits / max(ticked + positives, 1)) for hits, ticked, positives in sums)
        return ours, theirs

    generator = np.random.default_rng(0)
    everything = np.arange(len(targets))
    resampled = [f1_scores(generator.choice(everything, len(everything))) for _ in range(RESAMPLES)]
    ours, theirs = f1_scores(everything)
    margin = max(least_margin, MARGIN * float(np.std([mine - other for mine, other in resampled])))
    if ours >= theirs - margin:
        return []
    return [f"the F1 of its ticks is {ours:.4f}, that of {name} {theirs:.4f} (margin {margin:.4f})"]


def _trusted_aucs(targets: FloatArray, probabilities: npt.NDArray[Any]) -> dict[str, float]:
    aucs = roc_aucs(targets, probabilities)
    return {
        label: auc
        for label, auc in aucs.items()
        if min((targets[:, LABELS.index(label)] == value).sum() for value in (0, 1)) >= LEAST_FOR_AUC
    }
