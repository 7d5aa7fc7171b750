"""From a trained network to a version: judged against its rivals, its decision chosen, its manifest written.

Not here: the rules of judging (verdict.py) and the measures (evaluation.py). Training runs and `train` share this, so a version
is the same kind of thing wherever it comes from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from toxicity.calibration import Decision
from toxicity.classifier import Classifier
from toxicity.comments import LabelledComment
from toxicity.corpus import read_corpus, reference_file
from toxicity.evaluation import choose, measures, targets_of
from toxicity.fine_tuning import Trained, TrainingPlan
from toxicity.labels import LABELS
from toxicity.loading import golden_outputs
from toxicity.manifest import Manifest, Verdict
from toxicity.model_card import installed_packages
from toxicity.settings import Settings
from toxicity.verdict import (
    HOLD_OUT,
    REFERENCE,
    Answers,
    Yardstick,
    enough_to_judge,
    is_better,
    judge,
    labels_without_evidence,
)
from toxicity.versions import LoadedVersion, ProjectVersions


@dataclass(frozen=True)
class Trial:
    """Comments to judge on, and what each rival says of them, by name.

    `reference` is a trial on the reference comments, for the labels of which the held-out ones show too little.
    """

    comments: list[LabelledComment]
    yardstick: Yardstick
    rivals: Mapping[str, Answers]
    reference: "Trial | None" = None

    def texts(self) -> list[str]:
        """Return the comments' texts."""
        return [comment.text for comment in self.comments]


@dataclass(frozen=True)
class Judgement:
    """What judging gave: the verdict, the decision that goes with the weights, and the measures under that decision."""

    verdict: Verdict
    decision: Decision
    measures: dict[str, float]
    is_best: bool


def begin_trial(held_out: Sequence[LabelledComment], rivals: Sequence[LoadedVersion], precision_floor: float = 0.0) -> Trial:
    """Let the rivals answer, before the candidate is trained: it may be trained in one's place.

    Where the held-out comments are too few to judge by, the reference comments take their place; where they are enough, but
    show too little of some label, the reference comments judge that label beside them.
    """
    comments, targets = list(held_out), targets_of(held_out)
    reference = read_corpus(reference_file()).comments
    if not enough_to_judge(targets):
        return _trial(reference, Yardstick(targets_of(reference), REFERENCE, len(comments)), rivals)
    trial = _trial(comments, Yardstick(targets, HOLD_OUT, len(comments), precision_floor), rivals)
    unseen = labels_without_evidence(targets)
    rivals = [rival for rival in rivals if rival.trained]  # a fresh head's ticks are chance
    if not unseen or not rivals:
        return trial
    only = np.where([label in unseen for label in LABELS], targets_of(reference), np.nan)
    return replace(trial, reference=_trial(reference, Yardstick(only, REFERENCE, len(comments)), rivals))


def _trial(comments: list[LabelledComment], yardstick: Yardstick, rivals: Sequence[LoadedVersion]) -> Trial:
    texts = [comment.text for comment in comments]
    # Calibrated, as the candidate's head is by then: the same network gets the same answers in both roles.
    answers = {rival.name: Answers(rival.predict(texts), Decision(thresholds=rival.thresholds)) for rival in rivals}
    return Trial(comments, yardstick, answers)


def end_trial(trial: Trial, candidate: Classifier, parent: Decision) -> Judgement:
    """Judge the candidate, and choose its calibration and thresholds where there is enough to choose on.

    Where the reference comments were judged on, or it is broken, it keeps its parent's decision.
    """
    targets = trial.yardstick.targets
    answers = Answers(candidate.predict(trial.texts()), parent)
    if not candidate.is_finite():
        answers = Answers(np.full_like(answers.probabilities, np.nan), parent)
    verdict = judge(trial.yardstick, answers, trial.rivals)
    if not np.isfinite(answers.probabilities).all():
        return Judgement(verdict, parent, {}, is_best=False)
    if trial.reference is not None:
        beside = Answers(candidate.predict(trial.reference.texts()), parent)
        verdict = _both(verdict, judge(trial.reference.yardstick, beside, trial.reference.rivals))
    decision = parent
    if trial.yardstick.judged_on == HOLD_OUT:
        decision = choose(targets, answers.probabilities, parent, trial.yardstick.precision_floor)
    found = measures(targets, decision.calibration(answers.probabilities), decision.thresholds)
    return Judgement(verdict, decision, found, verdict.accepted and is_better(trial.yardstick, answers, trial.rivals))


def _both(verdict: Verdict, beside: Verdict) -> Verdict:
    if beside.accepted:
        return verdict
    reasons = tuple(f"of labels that few held-out comments show: {reason}" for reason in beside.reasons[:-1])
    return replace(verdict, accepted=False, reasons=(*(() if verdict.accepted else verdict.reasons), *reasons))


def training_facts(settings: Settings, plan: TrainingPlan, trained: Trained, classifier: Classifier) -> dict[str, Any]:
    """Return what a manifest says of how a version was trained, whatever it was trained on."""
    return {
        "epochs": trained.epochs,
        "epochs_planned": plan.epochs,
        "learning_rate": plan.learning_rate,
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "max_length": settings.max_length,
        "hold_out": settings.hold_out,
        "replay": settings.replay,
        "precision_floor": settings.precision_floor,
        "corpus": settings.corpus,
        "precision": classifier.precision(),
        "packages": installed_packages(),
    }


def manifest_of(
    versions: ProjectVersions,
    number: int,
    parent: LoadedVersion,
    classifier: Classifier,
    judgement: Judgement,
    *,
    watermark: str,
    encoder: str,
    training: dict[str, Any],
) -> Manifest:
    """Return the manifest of a judged candidate. One that is no numbers has no golden outputs, so that it never loads."""
    return Manifest(
        name=versions.name(number),
        number=number,
        parent=parent.number,
        parent_name=parent.name,
        best=number if judgement.is_best else versions.best(parent.number),
        watermark=watermark,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        encoder=encoder,
        fingerprint=classifier.fingerprint(),
        labels=LABELS,
        thresholds=judgement.decision.thresholds,
        calibration=judgement.decision.calibration,
        golden_outputs=golden_outputs(classifier) if classifier.is_finite() else (),
        measures=judgement.measures,
        verdict=judgement.verdict,
        training=training,
    )
