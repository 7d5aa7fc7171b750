"""The training job as a recipe: what is new, mixed with what is old, learned from the live weights, judged, published.

Not here: when it runs (toxicity/training_queue.py), what it learns (lesson.py), and how (toxicity/fine_tuning.py). A run that
dies at any line leaves the live version and the examples as they were: the only act that counts is publishing.
"""

import logging
import time
from contextlib import suppress
from typing import Any, cast

import numpy as np
import redis
from rq import get_current_job

from toxicity.calibration import Decision
from toxicity.classifier import Classifier
from toxicity.devices import training_devices
from toxicity.evaluation import log_losses, targets_of
from toxicity.examples import BEGINNING, ExampleStore
from toxicity.fine_tuning import CORPUS_PLAN, Progress, Trained, TrainingPlan, fine_tune
from toxicity.judging import Trial, begin_trial, end_trial, manifest_of, training_facts
from toxicity.label_studio_api import LabelStudioApiError, annotations_in_label_studio
from toxicity.labelling_config import LabelStudioError
from toxicity.loading import EncoderChangedError, load_version
from toxicity.manifest import Manifest
from toxicity.model_card import model_cards
from toxicity.redis_connection import connect_patiently
from toxicity.settings import LOG_FORMAT, Settings, settings_from_environment
from toxicity.training_queue import TrainingQueue
from toxicity.versions import STARTER_NUMBER, LoadedVersion, OvertakenError, ProjectVersions, VersionError
from worker.lesson import Lesson, next_lesson
from worker.project_lock import ProjectLock

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
LEAST_FOR_STOPPING = 20  # comments; fewer would stop a run by chance


def train_project(project: int) -> dict[str, Any]:
    """Run one training run for a project: the function that RQ jobs name. Returns what came of it, for the job's result."""
    settings = settings_from_environment()
    logging.basicConfig(level=settings.log_level, format=LOG_FORMAT)
    connection = connect_patiently(settings)
    with ProjectLock(connection, project) as lock:
        taken_over = _take_over(settings, connection, project)
        return {**taken_over, **learn_and_publish(settings, ExampleStore(connection), project, lock)}


def learn_and_publish(settings: Settings, store: ExampleStore, project: int, lock: ProjectLock | None = None) -> dict[str, Any]:
    """Learn what is new since the live version, judge the result, and publish it as the next version, live or rejected.

    Where nothing is new, nothing is published.

    Raises:
        VersionError: a rival run published first. ValueError: training failed.
    """
    versions = ProjectVersions(settings.models_dir(), project)
    _report(stage="loading")
    number = versions.next_number()  # before training: a rival run from the same parent gets the same one, and one of them wins
    in_service = versions.current()
    replacing = versions.name(in_service)
    parent = _parent(settings, versions, in_service)
    attempts = _attempts(versions, in_service)
    lesson = next_lesson(settings, store, project, parent.watermark, attempts, seed=number)
    if not lesson.new:
        store.caught_up(project, lesson.watermark)
        logger.info("project %d: nothing new since %s", project, parent.name)
        return {"published": None, "live": parent.name}
    trial = begin_trial(lesson.judging, _rivals(settings, versions, parent), settings.precision_floor)
    rate = settings.learning_rate if parent.trained else CORPUS_PLAN.learning_rate  # a fresh head has further to go
    plan = TrainingPlan(settings.train_epochs, rate, seed=number)
    cast(Classifier, parent.classifier).fold(parent.calibration)  # only now: the live version has answered as it is served
    trained = _train(parent, lesson, plan, lock)
    _report(stage="judging")
    manifest = _manifest(settings, versions, number, parent, lesson, plan, trained, trial)
    _report(stage="publishing")
    if lock is not None:
        lock.require()
    classifier = cast(Classifier, parent.classifier)
    try:
        versions.publish(manifest, classifier.weights(), model_cards(manifest, project), replacing)
    except OvertakenError as error:  # rolled back, or a new base: the sweeper asks for another run
        logger.warning("%s", error)
        return {"published": None, "live": versions.name(versions.current())}
    removed = versions.prune(settings.keep_versions)
    store.caught_up(project, lesson.watermark)
    return _outcome(project, manifest, lesson, trained, len(removed), replacing)


def _outcome(project: int, manifest: Manifest, lesson: Lesson, trained: Trained, removed: int, in_service: str) -> dict[str, Any]:
    learned = {"examples": len(lesson.new) + len(lesson.replayed), "new": len(lesson.new), "loss": trained.loss}
    reasons = "; ".join(manifest.verdict.reasons)
    if not manifest.verdict.accepted:
        logger.warning("project %d: %s rejected, %s stays: %s", project, manifest.name, in_service, reasons)
        return {"published": None, "rejected": manifest.name, "reasons": reasons, "live": in_service, **learned}
    logger.info(
        "project %d: %s published with %d new examples (%s), %d pruned", project, manifest.name, len(lesson.new), reasons, removed
    )
    return {"published": manifest.name, **learned}


def _take_over(settings: Settings, connection: redis.Redis, project: int) -> dict[str, Any]:
    """Record what Label Studio has and never sent, where START_TRAINING asked for it and Label Studio's address is known.

    A failure is told and does not end the run: what the webhooks sent is learned all the same.
    """
    queue = TrainingQueue(connection, settings)
    requests = queue.take_over_requested(project)
    if not requests:
        return {}
    told: dict[str, Any] = {}
    if settings.label_studio_url:
        _report(stage="taking over annotations")
        told = {"take_over": _taken_over(settings, ExampleStore(connection), project)}
    queue.take_over_done(project, requests)  # only now: a run that is killed before is run again with its take-over
    return told


def _taken_over(settings: Settings, store: ExampleStore, project: int) -> int | str:
    changed = unreadable = 0
    try:
        for changes in annotations_in_label_studio(settings, project):
            changed += store.apply(changes)
            unreadable += changes.unreadable
    except (LabelStudioApiError, LabelStudioError) as error:
        logger.error("project %d: Label Studio's annotations could not be taken over: %s", project, error)
        return f"failed: {error}"
    logger.info("project %d: %d examples taken over, %d annotations could not be read", project, changed, unreadable)
    return changed


def _parent(settings: Settings, versions: ProjectVersions, in_service: int) -> LoadedVersion:
    """The version in service, or else the newest before it that loads, or else its beginning: training must go on."""
    devices = training_devices()
    for number in [in_service, *(number for number in reversed(versions.accepted()) if number < in_service)]:
        try:
            return load_version(settings, versions, number, devices)
        except EncoderChangedError as error:  # an older line may be of this encoder
            logger.warning("%s", error)
        except VersionError as error:
            logger.error("project %d: version %d cannot be trained on: %s", versions.project, number, error)
    logger.info("project %d: starting a line from the beginning, with every example", versions.project)
    return load_version(settings, versions, STARTER_NUMBER, devices)


def _attempts(versions: ProjectVersions, in_service: int) -> int:
    """How many candidates were rejected since the version in service: the newest one knows, though others may be pruned."""
    newest = max(versions.numbers(), default=STARTER_NUMBER)
    if newest <= in_service or newest in versions.accepted():
        return 0
    try:
        return int(versions.manifest(newest).training.get("attempts", 0)) + 1
    except VersionError as error:
        logger.warning("project %d: how often training was tried is not known: %s", versions.project, error)
        return 0


def _rivals(settings: Settings, versions: ProjectVersions, parent: LoadedVersion) -> list[LoadedVersion]:
    """The live version, and the best so far, so that many small losses do not add up: it must not be worse than either."""
    best = versions.best(parent.number)
    if best == parent.number:
        return [parent]
    try:
        return [parent, load_version(settings, versions, best, training_devices())]  # in the numbers that the candidate is in
    except VersionError as error:
        logger.warning("project %d: the best version cannot be compared with: %s", versions.project, error)
        return [parent]


def _train(parent: LoadedVersion, lesson: Lesson, plan: TrainingPlan, lock: ProjectLock | None) -> Trained:
    classifier = cast(Classifier, parent.classifier)
    last_report = 0.0

    def report(progress: Progress) -> None:
        nonlocal last_report
        if progress.step == progress.steps or time.monotonic() - last_report > REPORT_SECONDS:
            last_report = time.monotonic()
            _report(stage="training", step=progress.step, steps=progress.steps, loss=round(progress.loss, 4))
            if lock is not None:
                lock.require()

    def stopping_loss() -> float:
        answers = classifier.predict([comment.text for comment in lesson.stopping])
        return float(np.nanmean(log_losses(targets_of(lesson.stopping), answers)))

    watch = stopping_loss if len(lesson.stopping) >= LEAST_FOR_STOPPING else None
    return fine_tune(classifier, lesson.new + lesson.replayed, plan, report, watch)


def _report(**progress: object) -> None:
    """Write progress to the job's meta, for whoever looks at the queue."""
    job = get_current_job()
    if job is not None:
        job.meta["progress"] = progress
        with suppress(redis.RedisError):  # a progress bar is not worth a run
            job.save_meta()  # type: ignore[no-untyped-call] # RQ types it not


def _manifest(
    settings: Settings,
    versions: ProjectVersions,
    number: int,
    parent: LoadedVersion,
    lesson: Lesson,
    plan: TrainingPlan,
    trained: Trained,
    trial: Trial,
) -> Manifest:
    classifier = cast(Classifier, parent.classifier)
    decision = Decision(thresholds=parent.thresholds)  # the calibration is in the head by now
    judgement = end_trial(trial, classifier, decision)
    judgement.measures["training_loss"] = trained.loss
    training = {
        "source": "new or changed examples of the project",
        "examples": len(lesson.new) + len(lesson.replayed),
        "new_examples": len(lesson.new),
        "replayed": len(lesson.replayed),
        "held_out": len(lesson.stopping) + len(lesson.judging),
        "attempts": _attempts(versions, versions.current()),
        "from_the_beginning": parent.watermark == BEGINNING,
        **training_facts(settings, plan, trained, classifier),
    }
    return manifest_of(
        versions,
        number,
        parent,
        classifier,
        judgement,
        watermark=lesson.watermark,
        encoder=settings.encoder,
        training=training,
    )
