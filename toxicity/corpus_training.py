"""From a corpus instead of annotators: train on a CSV, publish what comes of it, evaluate and predict over CSVs.

Not here: the CSVs themselves (corpus.py), how a network learns (fine_tuning.py), the commands' words (__main__.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toxicity.calibration import Decision, undo_weights
from toxicity.classifier import build_classifier
from toxicity.comments import LabelledComment
from toxicity.corpus import CorpusSplit, write_submission
from toxicity.devices import training_devices
from toxicity.evaluation import measures, targets_of
from toxicity.examples import BEGINNING
from toxicity.fine_tuning import CORPUS_PLAN, Progress, TrainingPlan, corpus_recipe, fine_tune, positive_weights
from toxicity.judging import Judgement, begin_trial, end_trial, manifest_of, training_facts
from toxicity.labels import LABELS
from toxicity.loading import load_newest
from toxicity.manifest import Manifest
from toxicity.model_card import model_cards
from toxicity.predicting import COMMENTS_PER_PASS
from toxicity.settings import Settings
from toxicity.versions import BASE_PROJECT, CORPUS_SOURCE, STARTER_NUMBER, LoadedVersion, ProjectVersions

Report = Callable[[Progress], None]


def train_on_corpus(
    settings: Settings,
    split: CorpusSplit,
    project: int,
    *,
    publish: bool,
    plan: TrainingPlan = CORPUS_PLAN,
    report: Report = lambda progress: None,
) -> Manifest:
    """Fine-tune the encoder on a corpus from a fresh head, judge the result, and write it as a project's next version.

    It goes into service where `publish` is true and it is not worse than the live version on what was held out.

    Raises:
        ValueError: the project has versions of its own, or training failed.
        VersionError: another run published first. OSError: the disk is full or not writable.
    """
    versions = ProjectVersions(settings.models_dir(), project)
    if publish and project != BASE_PROJECT and (versions.accepted() or versions.current() != STARTER_NUMBER):
        raise ValueError(
            f"Project {project} has versions of its own, and a corpus cannot tell whether another one is worse for it. Leave out "
            f"--publish and look at its measures, or leave out --project, or let training runs replay the corpus (CORPUS)."
        )
    in_service = versions.name(versions.current())  # which may not be what could be loaded: an encoder may have changed
    live = load_newest(settings, versions, devices=training_devices())  # in the numbers that the candidate is in
    trial = begin_trial(split.held_out, [live], settings.precision_floor)
    del live
    classifier = build_classifier(settings.encoder, settings.data_dir, settings.max_length, training_devices())
    weights = positive_weights(split.training)
    trained = fine_tune(classifier, split.training, plan, report, recipe=corpus_recipe(weights))
    judgement = end_trial(trial, classifier, undo_weights(weights))
    judgement.measures["training_loss"] = trained.loss
    if versions.name(versions.current()) != in_service:
        judgement = _kept_aside(judgement, "another version went into service meanwhile")
    elif not publish:
        judgement = _kept_aside(judgement, "--publish was not given")
    facts = {**_facts(split), **training_facts(settings, plan, trained, classifier)}
    scratch = LoadedVersion("the encoder", STARTER_NUMBER, Decision().thresholds, BEGINNING, classifier)
    manifest = manifest_of(
        versions,
        versions.next_number(),
        scratch,
        classifier,
        judgement,
        watermark=BEGINNING,  # it has learned no annotation of the project
        encoder=settings.encoder,
        training=facts,
    )
    replacing = in_service if manifest.verdict.accepted else None
    versions.publish(manifest, classifier.weights(), model_cards(manifest, project), replacing)
    versions.prune(settings.keep_versions)
    return manifest


def _facts(split: CorpusSplit) -> dict[str, Any]:
    return {
        "source": CORPUS_SOURCE,
        "corpus_sha256": split.sha256,
        "examples": len(split.training),
        "new_examples": len(split.training),
        "replayed": 0,
        "held_out": len(split.held_out),
        "not_scored": split.left_out,
        "from_the_beginning": True,
    }


def _kept_aside(judgement: Judgement, why: str) -> Judgement:
    verdict = judgement.verdict
    if not verdict.accepted:
        return judgement
    reasons = (*verdict.reasons, f"kept aside, as {why}")
    return replace(judgement, verdict=replace(verdict, accepted=False, reasons=reasons), is_best=False)


def evaluate_on_corpus(
    settings: Settings, comments: Sequence[LabelledComment], project: int
) -> tuple[LoadedVersion, dict[str, float]]:
    """Measure a project's live version on labelled comments; return it and the measures."""
    live = load_newest(settings, ProjectVersions(settings.models_dir(), project))
    probabilities = live.predict([comment.text for comment in comments])
    return live, measures(targets_of(comments), probabilities, live.thresholds)


def predict_corpus(
    settings: Settings,
    ids: Sequence[str],
    texts: Sequence[str],
    output: Path,
    project: int,
    report: Callable[[int, int], None],
) -> LoadedVersion:
    """Write a project's live version's probabilities for comments; `report` gets each portion's and the whole number.

    Raises:
        OSError: the output cannot be written.
    """
    live = load_newest(settings, ProjectVersions(settings.models_dir(), project))
    probabilities = np.empty((len(texts), len(LABELS)), np.float32)
    for start in range(0, len(texts), COMMENTS_PER_PASS):
        portion = texts[start : start + COMMENTS_PER_PASS]
        probabilities[start : start + len(portion)] = live.predict(portion)
        report(len(portion), len(texts))
    write_submission(output, ids, probabilities)
    return live
