"""The training job as a recipe: what is new, mixed with what is old, learned from the live weights, published.

Not here: when it runs (toxicity/training_queue.py), how weights are learned (toxicity/fine_tuning.py). A run that dies at any
line leaves the live version and the examples as they were: the only act that counts is publishing.
"""

import logging
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast

import redis
from rq import get_current_job

from toxicity.classifier import Classifier
from toxicity.comments import LabelledComment
from toxicity.corpus import anchors_file, read_corpus
from toxicity.examples import BEGINNING, ExampleStore, Snapshot
from toxicity.fine_tuning import Progress, TrainingPlan, fine_tune, replay_indices
from toxicity.label_studio_api import LabelStudioApiError, annotations_in_label_studio
from toxicity.labelling_config import LabelStudioError
from toxicity.labels import DEFAULT_THRESHOLDS, LABELS
from toxicity.loading import EncoderChangedError, golden_outputs, load_starter, load_version
from toxicity.redis_connection import connect_patiently
from toxicity.settings import LOG_FORMAT, Settings, settings_from_environment
from toxicity.training_queue import TrainingQueue
from toxicity.versions import LoadedVersion, Manifest, ProjectVersions, VersionError, version_name
from worker.project_lock import ProjectLock

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
LEAST_REPLAY = 64  # older examples and anchors in a run, whatever it learns: fewer do not hold a network in place
LEAST_ANCHORS = 32  # of them anchors, however many older examples there are
MOST_EXAMPLES = 2000  # new ones in a run, and replayed ones; where there are more new ones, the next run goes on from there


def train_project(project: int) -> dict[str, Any]:
    """Run one training run for a project: the function that RQ jobs name. Returns what came of it, for the job's result."""
    settings = settings_from_environment()
    logging.basicConfig(level=settings.log_level, format=LOG_FORMAT)
    connection = connect_patiently(settings)
    with ProjectLock(connection, project) as lock:
        taken_over = _take_over(settings, connection, project)
        return {**taken_over, **learn_and_publish(settings, ExampleStore(connection), project, lock)}


def learn_and_publish(settings: Settings, store: ExampleStore, project: int, lock: ProjectLock | None = None) -> dict[str, Any]:
    """Learn what is new since the live version and publish the result as the next one; nothing new, nothing published.

    Raises:
        VersionError: a rival run published first. ValueError: training failed.
    """
    versions = ProjectVersions(settings.models_dir(), project)
    _report(stage="loading")
    number = versions.next_number()  # before training: a rival run from the same parent gets the same one, and one of them wins
    in_service = versions.current()
    parent = _parent(settings, versions, in_service)
    snapshot, new = _first_lesson(store, project, parent.watermark)
    if not new:
        store.caught_up(project, snapshot.watermark)
        logger.info("project %d: nothing new since %s", project, parent.name)
        return {"published": None, "live": parent.name}
    comments = new + _replayed(settings, store, project, snapshot, seed=number)
    classifier = cast(Classifier, parent.classifier)
    plan = TrainingPlan(settings.train_epochs, settings.learning_rate, seed=number)
    loss = _train(classifier, comments, plan, lock)
    _report(stage="publishing")
    manifest = _manifest(number, parent, snapshot, classifier, plan, examples=len(comments), new_examples=len(new), loss=loss)
    if lock is not None:
        lock.require()
    if versions.current() != in_service:
        logger.warning("project %d: got another live version while it was trained; this run is dropped", project)
        return {"published": None, "live": version_name(versions.current())}
    versions.publish(manifest, classifier.weights(), model_card(manifest, project, settings))
    removed = versions.prune(settings.keep_versions)
    store.caught_up(project, snapshot.watermark)
    logger.info("project %d: %s published with %d new examples, %d pruned", project, manifest.name, len(new), len(removed))
    return {"published": manifest.name, "examples": len(comments), "new": len(new), "loss": loss}


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


def _first_lesson(store: ExampleStore, project: int, watermark: str) -> tuple[Snapshot, list[LabelledComment]]:
    """Return the oldest new examples, and the snapshot that they are from; pages of blank or tied ones are passed over."""
    while True:
        snapshot = store.snapshot(project, watermark, at_most=MOST_EXAMPLES)
        new = store.comments(project, snapshot, sorted(snapshot.changed))
        if new or snapshot.watermark == watermark:
            return snapshot, new
        watermark = snapshot.watermark


def _parent(settings: Settings, versions: ProjectVersions, in_service: int) -> LoadedVersion:
    """The version in service, or else the newest before it that loads, or else the starter: training must go on."""
    for number in [in_service, *(number for number in reversed(versions.numbers()) if number < in_service)]:
        try:
            return load_version(settings, versions, number)
        except EncoderChangedError as error:
            logger.warning("%s Starting anew from the starter, with every example.", error)
            break
        except VersionError as error:
            logger.error("project %d: version %d cannot be trained on: %s", versions.project, number, error)
    return load_starter(settings)


def _replayed(settings: Settings, store: ExampleStore, project: int, snapshot: Snapshot, seed: int) -> list[LabelledComment]:
    """Older examples of the project, and anchors: fixed comments that keep in mind what a project's annotators rarely show."""
    older = sorted(snapshot.targets.keys() - snapshot.changed)
    count = min(max(settings.replay * len(snapshot.changed), LEAST_REPLAY), max(MOST_EXAMPLES, LEAST_REPLAY))
    indices = replay_indices([snapshot.targets[task] for task in older], count, seed)
    replayed = store.comments(project, snapshot, [older[index] for index in indices])
    anchors = read_corpus(anchors_file())
    wanted = max(LEAST_ANCHORS, LEAST_REPLAY - len(replayed))
    return replayed + [anchors[index] for index in replay_indices([anchor.targets for anchor in anchors], wanted, seed)]


def _train(classifier: Classifier, comments: list[LabelledComment], plan: TrainingPlan, lock: ProjectLock | None) -> float:
    last_report = 0.0

    def report(progress: Progress) -> None:
        nonlocal last_report
        if progress.step == progress.steps or time.monotonic() - last_report > REPORT_SECONDS:
            last_report = time.monotonic()
            _report(stage="training", step=progress.step, steps=progress.steps, loss=round(progress.loss, 4))
            if lock is not None:
                lock.require()

    return fine_tune(classifier, comments, plan, report)


def _report(**progress: object) -> None:
    """Write progress to the job's meta, for whoever looks at the queue."""
    job = get_current_job()
    if job is not None:
        job.meta["progress"] = progress
        with suppress(redis.RedisError):  # a progress bar is not worth a run
            job.save_meta()  # type: ignore[no-untyped-call] # RQ types it not


def _manifest(
    number: int,
    parent: LoadedVersion,
    snapshot: Snapshot,
    classifier: Classifier,
    plan: TrainingPlan,
    *,
    examples: int,
    new_examples: int,
    loss: float,
) -> Manifest:
    return Manifest(
        number=number,
        parent=parent.number,
        watermark=snapshot.watermark,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprint=classifier.fingerprint(),
        labels=LABELS,
        thresholds=DEFAULT_THRESHOLDS,
        golden_outputs=golden_outputs(classifier),
        measures={"training_loss": loss},
        training={
            "examples": examples,
            "replayed": examples - new_examples,
            "new_examples": new_examples,
            "from_the_beginning": parent.watermark == BEGINNING,
            "epochs": plan.epochs,
            "learning_rate": plan.learning_rate,
            "batch_size": plan.batch_size,
            "seed": plan.seed,
        },
    )


def model_card(manifest: Manifest, project: int, settings: Settings) -> str:
    """Return a version's model card as Markdown. It counts comments and never quotes one."""
    training = manifest.training
    return f"""# {manifest.name} of project {project}

Puts six labels ({", ".join(manifest.labels)}) on a comment. Made {manifest.created_at}.

- Starts from v{manifest.parent}; encoder `{settings.encoder}`.
- Learned {training["new_examples"]} new or changed examples of the project, beside {training["replayed"]} replayed ones (older
  examples, and anchors: comments written for this purpose).
- {training["epochs"]} epochs, learning rate {training["learning_rate"]}, batches of {training["batch_size"]},
  seed {training["seed"]}.
- Loss of the last epoch: {manifest.measures["training_loss"]:.4f}. Thresholds: {", ".join(map(str, manifest.thresholds))}.
- It learned its annotators' judgement, mistakes included. It is to help moderators decide, not to decide alone.
"""
