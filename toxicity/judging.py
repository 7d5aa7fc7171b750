"""From a trained network to a version: judged against its rivals, its decision chosen, its manifest written.

Not here: the rules of judging (verdict.py) and the measures (evaluation.py). Training runs and `train` share this, so a version
is the same kind of thing wherever it comes from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

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
from toxicity.verdict import HOLD_OUT, REFERENCE, Yardstick, enough_to_judge, is_better, judge
from toxicity.versions import LoadedVersion, ProjectVersions


@dataclass(frozen=True)
class Trial:
    """Comments to judge on, and what each rival (name -> probabilities of shape (comments, 6), uncalibrated) says of them."""

    comments: list[LabelledComment]
    yardstick: Yardstick
    rivals: Mapping[str, npt.NDArray[np.float32]]

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


def begin_trial(held_out: Sequence[LabelledComment], rivals: Sequence[LoadedVersion]) -> Trial:
    """Let the rivals answer, before the candidate is trained: it may be trained in one's place.

    Where the held-out comments are too few to judge by, the reference comments take their place.
    """
    comments, judged_on = list(held_out), HOLD_OUT
    count = len(comments)
    if not enough_to_judge(targets_of(comments)):
        comments, judged_on = read_corpus(reference_file()).comments, REFERENCE
    texts = [comment.text for comment in comments]
    answers = {rival.name: rival.classifier.predict(texts) for rival in rivals}
    return Trial(comments, Yardstick(targets_of(comments), judged_on, count), answers)


def end_trial(trial: Trial, candidate: Classifier, parent: Decision, precision_floor: float) -> Judgement:
    """Judge the candidate, and choose its calibration and thresholds where there is enough to choose on.

    Where the reference comments were judged on, or it is broken, it keeps its parent's decision.
    """
    targets, rivals = trial.yardstick.targets, dict(trial.rivals)
    answers = candidate.predict(trial.texts())
    if not candidate.is_finite():
        answers = np.full_like(answers, np.nan)
    verdict = judge(trial.yardstick, answers, rivals)
    if not np.isfinite(answers).all():
        return Judgement(verdict, parent, {}, is_best=False)
    decision = parent
    if trial.yardstick.judged_on == HOLD_OUT:
        decision = choose(targets, answers, parent, precision_floor)
    found = measures(targets, decision.calibration(answers), decision.thresholds)
    return Judgement(verdict, decision, found, verdict.accepted and is_better(trial.yardstick, answers, rivals))


def training_facts(settings: Settings, plan: TrainingPlan, trained: Trained, classifier: Classifier) -> dict[str, Any]:
    """Return what a manifest says of how a version was trained, whatever it was trained on."""
    return {
        "epochs": trained.epochs,
        "epochs_planned": plan.epochs,
        "learning_rate": plan.learning_rate,
        "batch_size": plan.batch_size,
        "seed": plan.seed,
        "max_length": settings.max_length,
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
