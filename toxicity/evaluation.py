"""How good a version is, measured on labelled comments it has not learned: ROC AUC, loss, calibration, thresholds.

Not here: whether it may go into service (verdict.py), and which comments are held out (hold_out.py). Targets are arrays of
shape (comments, 6) with nan where nobody was asked for a label; such entries are left out of everything.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.stats import rankdata
from sklearn.metrics import precision_recall_curve

from toxicity.calibration import IDENTITY, Calibration, Decision, logit
from toxicity.comments import LabelledComment
from toxicity.labels import LABELS

FloatArray = npt.NDArray[np.float64]

LEAST_OF_EACH = 10  # positives, and negatives, without which nothing is chosen for a label: it would be noise
SLOPE_SPREAD, OFFSET_SPREAD = 0.5, 1.0  # how far slopes' logarithms and offsets are expected from none; holds small samples
CALIBRATION_FOLDS = 5
THRESHOLD_RANGE = (0.02, 0.98)


def targets_of(comments: Sequence[LabelledComment]) -> FloatArray:
    """Return the targets as an array of shape (comments, 6), nan where a label was not asked for."""
    return np.array([comment.targets for comment in comments], np.float64).reshape(-1, len(LABELS))


def roc_aucs(targets: FloatArray, probabilities: npt.NDArray[Any]) -> dict[str, float]:
    """Return the ROC AUC of each label that has a positive and a negative; others have none."""
    aucs: dict[str, float] = {}
    for column, label in enumerate(LABELS):
        truth, given = _asked(targets, probabilities, column)
        if 0 < truth.sum() < len(truth):
            aucs[label] = _roc_auc(truth, given)
    return aucs


def _roc_auc(truth: FloatArray, given: FloatArray) -> float:
    # The Mann-Whitney form, as the verdict asks for thousands of them: scikit-learn's roc_auc_score takes 20 times as long.
    positives = int(truth.sum())
    above = rankdata(given)[truth == 1].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(truth) - positives)))


def log_losses(targets: FloatArray, probabilities: npt.NDArray[Any]) -> FloatArray:
    """Return each comment's cross-entropy in nats, the mean over its asked labels; nan where none was asked."""
    scores = logit(probabilities)
    asked = np.isfinite(targets)
    losses = np.where(asked, np.logaddexp(0, scores) - np.nan_to_num(targets) * scores, 0.0)
    counts = asked.sum(axis=1)
    return np.where(counts > 0, losses.sum(axis=1) / np.maximum(counts, 1), np.nan)


def measures(targets: FloatArray, probabilities: npt.NDArray[Any], thresholds: Sequence[float]) -> dict[str, float]:
    """Return mean ROC AUC (the challenge's measure), mean log loss, and each label's AUC, positives, precision, recall, F1.

    What cannot be computed (the AUC of a label without positives, say) is left out.
    """
    aucs = roc_aucs(targets, probabilities)
    found: dict[str, float] = {"comments": len(targets)}
    if aucs:
        found["mean_roc_auc"] = float(np.mean(list(aucs.values())))
    losses = log_losses(targets, probabilities)
    if np.isfinite(losses).any():
        found["log_loss"] = float(np.nanmean(losses))
    for column, label in enumerate(LABELS):
        truth, given = _asked(targets, probabilities, column)
        ticks = given >= thresholds[column]
        hits, ticked, positives = int((ticks & (truth == 1)).sum()), int(ticks.sum()), int(truth.sum())
        found[f"{label}.positives"] = positives
        if label in aucs:
            found[f"{label}.roc_auc"] = aucs[label]
        if ticked:
            found[f"{label}.precision"] = hits / ticked
        if positives:
            found[f"{label}.recall"] = hits / positives
            found[f"{label}.f1"] = 2 * hits / (ticked + positives)
    return found


def choose(targets: FloatArray, probabilities: npt.NDArray[Any], fallback: Decision, precision_floor: float = 0.0) -> Decision:
    """Choose calibration and thresholds on held-out comments, given the network's own probabilities.

    A label with under LEAST_OF_EACH positives or negatives keeps the fallback's.
    """
    calibration = fit_calibration(targets, probabilities, fallback.calibration)
    thresholds = choose_thresholds(targets, calibration(probabilities), fallback.thresholds, precision_floor)
    return Decision(calibration, thresholds)


def fit_calibration(targets: FloatArray, probabilities: npt.NDArray[Any], fallback: Calibration = IDENTITY) -> Calibration:
    """Fit Platt scaling label by label; a label is calibrated only where that lowers the loss on comments left out of the fit.

    A label with too few comments to fit on keeps the fallback's.
    """
    slopes, offsets = list(fallback.slopes), list(fallback.offsets)
    for column in range(len(LABELS)):
        truth, given = _asked(targets, probabilities, column)
        if _enough(truth):
            slopes[column], offsets[column] = _fit_label(truth, given)
    return Calibration(tuple(slopes), tuple(offsets))


def choose_thresholds(
    targets: FloatArray, probabilities: npt.NDArray[Any], fallback: Sequence[float], precision_floor: float = 0.0
) -> tuple[float, ...]:
    """Return each label's threshold: of best F1, or the lowest at which precision reaches the floor (0: no floor).

    Where no threshold reaches the floor, it is the one of highest precision.
    """
    chosen: list[float] = []
    for column in range(len(LABELS)):
        truth, given = _asked(targets, probabilities, column)
        if not _enough(truth):
            chosen.append(float(fallback[column]))
            continue
        precision, recall, candidates = precision_recall_curve(truth, given)
        precision, recall = precision[:-1], recall[:-1]  # the last point has no threshold
        if precision_floor:
            reaching = np.flatnonzero(precision >= precision_floor)
            best = int(reaching[0]) if len(reaching) else int(np.lexsort((recall, precision))[-1])
        else:
            best = int(np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-12)))
        below = given[given < candidates[best]].max(initial=0.0)
        # Halfway to the next lower probability, so that a comment's answer does not sit on the threshold; of two numbers with
        # none between them, the half may be the lower.
        middle = (candidates[best] + below) / 2
        chosen.append(float(np.clip(middle if middle > below else candidates[best], *THRESHOLD_RANGE)))
    return tuple(chosen)


def _asked(targets: FloatArray, probabilities: npt.NDArray[Any], column: int) -> tuple[FloatArray, FloatArray]:
    asked = np.isfinite(targets[:, column])
    return targets[asked, column], probabilities[asked, column].astype(np.float64)


def _enough(truth: FloatArray) -> bool:
    return bool(LEAST_OF_EACH <= truth.sum() <= len(truth) - LEAST_OF_EACH)


def _fit_label(truth: FloatArray, given: FloatArray) -> tuple[float, float]:
    scores = logit(given)
    folds = np.empty(len(truth), np.intp)
    for value in (0, 1):  # stratified
        rows = np.flatnonzero(truth == value)
        folds[rows] = np.arange(len(rows)) % CALIBRATION_FOLDS
    left_out = np.empty(len(truth))
    for fold in range(CALIBRATION_FOLDS):
        slope, offset = _platt(truth[folds != fold], scores[folds != fold])
        left_out[folds == fold] = slope * scores[folds == fold] + offset
    return _platt(truth, scores) if _loss(truth, left_out) < _loss(truth, scores) else (1.0, 0.0)


def _loss(truth: FloatArray, scores: FloatArray) -> float:
    return float(np.sum(np.logaddexp(0, scores) - truth * scores))


def _platt(truth: FloatArray, scores: FloatArray) -> tuple[float, float]:
    def penalized(parameters: FloatArray) -> float:
        log_slope, offset = parameters
        expected = (log_slope / SLOPE_SPREAD) ** 2 / 2 + (offset / OFFSET_SPREAD) ** 2 / 2
        return float(_loss(truth, np.exp(log_slope) * scores + offset) + expected)

    # Without gradients, as two numbers need none: L-BFGS-B's linear algebra would wake every core for each label.
    log_slope, offset = minimize(penalized, np.zeros(2), method="Nelder-Mead").x
    return round(float(np.exp(log_slope)), 6), round(float(offset), 6)
