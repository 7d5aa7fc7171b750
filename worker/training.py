"""The training job as a recipe: what is new, mixed with what is old, learned from the live weights, published.

Not here: when it runs (toxicity/training_queue.py), how weights are learned (toxicity/fine_tuning.py). A run that dies at any
line leaves the live version and the examples as they were: the only act that counts is publishing.
"""

import logging
import time
from datetime import UTC, datetime
from typing import Any, cast

import redis
from rq import get_current_job

from toxicity.classifier import Classifier
from toxicity.comments import LabelledComment
from toxicity.examples import BEGINNING, ExampleStore, Snapshot
from toxicity.fine_tuning import Progress, TrainingPlan, fine_tune, replay_indices
from toxicity.label_studio import Changes
from toxicity.label_studio_api import annotations_in_label_studio
from toxicity.labels import DEFAULT_THRESHOLDS, LABELS
from toxicity.loading import EncoderChangedError, golden_outputs, load_starter, load_version
from toxicity.redis_connection import connect_patiently
from toxicity.settings import Settings, settings_from_environment
from toxicity.training_queue import TrainingQueue
from toxicity.versions import LoadedVersion, Manifest, ProjectVersions, VersionError
from worker.project_lock import ProjectLock

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
LEAST_REPLAY = 48  # three batches: fewer do not hold a network in place


def train_project(project: int) -> dict[str, Any]:
    """Run one training run for a project: the function that RQ jobs name. Returns what came of it, for the job's result."""
    settings = settings_from_environment()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    connection = connect_patiently(settings)
    with ProjectLock(connection, project) as lock:
        _take_over(settings, connection, project)
        return learn_and_publish(settings, ExampleStore(connection), project, lock)


def learn_and_publish(settings: Settings, store: ExampleStore, project: int, lock: ProjectLock | None = None) -> dict[str, Any]:
    """Learn what is new since the live version and publish the result as the next one; nothing new, nothing published.

    Raises:
        VersionError: the live version cannot be read, or a rival run published first. ValueError: training failed.
    """
    versions = ProjectVersions(settings.models_dir(), project)
    _report(stage="loading")
    number = versions.next_number()  # before training: a rival run from the same parent gets the same one, and one of them wins
    in_service = versions.current()
    parent = _parent(settings, versions, in_service)
    snapshot = store.snapshot(project, parent.watermark)
    chosen = _chosen_tasks(settings, snapshot)
    comments = store.comments(project, snapshot, chosen)
    if not snapshot.changed or not comments:
        store.caught_up(project, snapshot.watermark)
        logger.info("project %d: nothing new since %s", project, parent.name)
        return {"published": None, "live": parent.name}
    classifier = cast(Classifier, parent.classifier)
    plan = TrainingPlan(settings.train_epochs, settings.learning_rate, seed=parent.number)
    loss = _train(classifier, comments, plan, lock)
    _report(stage="publishing")
    manifest = _manifest(number, parent, snapshot, classifier, plan, len(comments), loss)
    if lock is not None:
        lock.require()
    if versions.current() != in_service:
        raise VersionError(
            f"Project {project} was rolled back or swapped while it was trained: this run starts again from there."
        )
    versions.publish(manifest, classifier.weights(), model_card(manifest, project, settings))
    removed = versions.prune(settings.keep_versions)
    store.caught_up(project, snapshot.watermark)
    logger.info("project %d: %s published, %d pruned", project, manifest.name, len(removed))
    return {"published": manifest.name, "examples": len(comments), "new": len(snapshot.changed), "loss": loss}


def _take_over(settings: Settings, connection: redis.Redis, project: int) -> None:
    """Record what Label Studio has and never sent, where START_TRAINING asked for it and Label Studio's address is known."""
    queue = TrainingQueue(connection, settings)
    if not queue.everything_requested(project):
        return
    if settings.label_studio_url:
        _report(stage="taking over annotations")
        store = ExampleStore(connection)
        try:
            changed = sum(
                store.apply(Changes(project, annotations=tuple(annotations)))
                for annotations in annotations_in_label_studio(settings, project)
            )
            logger.info("project %d: %d examples taken over from Label Studio", project, changed)
        except Exception as error:  # whatever its SDK raises: what its webhooks sent must be learned all the same
            logger.error("project %d: Label Studio's annotations could not be taken over: %s", project, type(error).__name__)
    queue.everything_done(project)


def _parent(settings: Settings, versions: ProjectVersions, number: int) -> LoadedVersion:
    try:
        return load_version(settings, versions, number)
    except EncoderChangedError as error:
        logger.warning("%s Starting anew from the starter, with every example.", error)
        return load_starter(settings)


def _chosen_tasks(settings: Settings, snapshot: Snapshot) -> list[int]:
    """What changed, and a replay of what did not."""
    older = sorted(snapshot.targets.keys() - snapshot.changed)
    changed = len(snapshot.changed)
    replayed = replay_indices(changed, len(older), settings.replay, LEAST_REPLAY, seed=changed)
    return sorted(snapshot.changed) + [older[index] for index in replayed]


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
        job.save_meta()  # type: ignore[no-untyped-call] # RQ types it not


def _manifest(
    number: int,
    parent: LoadedVersion,
    snapshot: Snapshot,
    classifier: Classifier,
    plan: TrainingPlan,
    examples: int,
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
            "new_examples": len(snapshot.changed),
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
- Trained on {training["examples"]} annotated comments of the project, {training["new_examples"]} of them new or changed.
- {training["epochs"]} epochs, learning rate {training["learning_rate"]}, batches of {training["batch_size"]},
  seed {training["seed"]}.
- Loss of the last epoch: {manifest.measures["training_loss"]:.4f}. Thresholds: {", ".join(map(str, manifest.thresholds))}.
- It learned its annotators' judgement, mistakes included. It is to help moderators decide, not to decide alone.
"""
