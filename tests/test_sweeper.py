"""The sweeper on a real Redis: which projects it queues a training run for."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import redis
from rq.job import JobStatus
from rq.utils import utcformat

from tests.conftest import REJECTED, publish
from toxicity.examples import BEGINNING, BEHIND_KEY, ExampleStore
from toxicity.label_studio import Annotation, Changes
from toxicity.settings import Settings
from toxicity.training_queue import TrainingQueue
from toxicity.versions import ProjectVersions
from worker.sweeper import Sweeper

TOXIC = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture
def due_settings(redis_settings: Settings) -> Settings:
    return replace(redis_settings, train_after=3, train_wait=60)


@pytest.fixture
def store(connection: redis.Redis) -> ExampleStore:
    return ExampleStore(connection)


@pytest.fixture
def training(connection: redis.Redis, due_settings: Settings) -> TrainingQueue:
    return TrainingQueue(connection, due_settings)


@pytest.fixture
def sweeper(connection: redis.Redis, due_settings: Settings) -> Sweeper:
    return Sweeper(connection, due_settings)


def annotate(store: ExampleStore, *tasks: int, project: int = 1) -> None:
    for task in tasks:
        store.apply(Changes(project, annotations=(Annotation(task, task, "2026-01-01T10:00:00Z", "text", TOXIC),)))


def age(connection: redis.Redis, store: ExampleStore, seconds: int, project: int = 1) -> None:
    """Let a project be behind for so many seconds."""
    connection.zadd(BEHIND_KEY, {str(project): store.now() - seconds})


def test_nothing_is_due_where_nothing_was_annotated(sweeper: Sweeper, training: TrainingQueue) -> None:
    assert sweeper.sweep() == []
    assert training.queue.get_job_ids() == []


def test_a_project_is_due_at_train_after_and_not_before(sweeper: Sweeper, store: ExampleStore, training: TrainingQueue) -> None:
    annotate(store, 1, 2)
    assert sweeper.sweep() == []
    annotate(store, 3)
    assert sweeper.sweep() == [1]
    assert training.queue.get_job_ids() == ["train-1-0"]


def test_one_example_is_due_at_train_wait_and_not_before(
    sweeper: Sweeper, store: ExampleStore, connection: redis.Redis, training: TrainingQueue
) -> None:
    annotate(store, 1)
    age(connection, store, 55)
    assert sweeper.sweep() == []
    age(connection, store, 61)
    assert sweeper.sweep() == [1]
    assert training.queue.get_job_ids() == ["train-1-0"]


def test_nothing_is_due_after_a_version_that_learned_everything_was_published(
    sweeper: Sweeper, store: ExampleStore, connection: redis.Redis, due_settings: Settings
) -> None:
    annotate(store, 1, 2, 3)
    publish(ProjectVersions(due_settings.models_dir(), 1), 1, store.snapshot(1, BEGINNING).watermark)
    age(connection, store, 1000)  # and yet behind: the run was killed between publishing and saying so
    assert sweeper.sweep() == []


def test_only_what_came_after_the_live_versions_watermark_counts(
    sweeper: Sweeper, store: ExampleStore, due_settings: Settings
) -> None:
    annotate(store, 1, 2, 3)
    publish(ProjectVersions(due_settings.models_dir(), 1), 1, store.snapshot(1, BEGINNING).watermark)
    annotate(store, 4, 5)
    assert sweeper.sweep() == []
    annotate(store, 6)
    assert sweeper.sweep() == [1]


def test_a_run_killed_after_publishing_does_not_make_the_next_example_due_at_once(
    sweeper: Sweeper, store: ExampleStore, connection: redis.Redis, due_settings: Settings
) -> None:
    annotate(store, 1)
    publish(ProjectVersions(due_settings.models_dir(), 1), 1, store.snapshot(1, BEGINNING).watermark)
    age(connection, store, 1000)
    sweeper.sweep()
    annotate(store, 2)
    assert sweeper.sweep() == []


def test_a_withdrawn_example_does_not_make_the_next_example_due_at_once(
    sweeper: Sweeper, store: ExampleStore, connection: redis.Redis
) -> None:
    annotate(store, 1)
    store.apply(Changes(1, deleted_annotations=(1,)))
    age(connection, store, 1000)
    assert sweeper.sweep() == []
    assert store.behind() == {}
    annotate(store, 2)
    assert sweeper.sweep() == []


def test_a_project_rests_after_a_failure_and_is_tried_again_later(
    sweeper: Sweeper, store: ExampleStore, connection: redis.Redis, training: TrainingQueue
) -> None:
    annotate(store, 1, 2, 3)
    sweeper.sweep()
    job = training.current_run(1)
    assert job is not None
    training.queue.remove(job)
    job.set_status(JobStatus.FAILED)
    for seconds, due in ((5, []), (55, []), (61, [1])):
        connection.hset(job.key, "ended_at", utcformat(datetime.now(UTC) - timedelta(seconds=seconds)))
        assert sweeper.sweep() == due
    assert training.queue.get_job_ids() == ["train-1-1"]


def test_two_projects_are_independent(sweeper: Sweeper, store: ExampleStore, connection: redis.Redis) -> None:
    annotate(store, 1, 2, 3, project=1)
    annotate(store, 4, project=2)
    assert sweeper.sweep() == [1]
    age(connection, store, 61, project=2)
    assert sorted(sweeper.sweep()) == [1, 2]


def test_a_project_whose_versions_cannot_be_read_keeps_no_other_from_training(
    sweeper: Sweeper, store: ExampleStore, due_settings: Settings
) -> None:
    annotate(store, 1, 2, 3, project=1)
    annotate(store, 4, 5, 6, project=2)
    current = due_settings.models_dir() / "1" / "current"
    current.parent.mkdir(parents=True)
    for garbage in (b"garbage", b"\xff\xfe"):
        current.write_bytes(garbage)
        assert 2 in sweeper.sweep()


def test_a_take_over_that_was_asked_for_during_a_run_gets_a_run_of_its_own(sweeper: Sweeper, training: TrainingQueue) -> None:
    training.request_take_over(1)
    assert training.request(1) == "train-1-0"
    seen = training.take_over_requested(1)
    training.request_take_over(1)
    assert training.request(1) == "train-1-0"  # still running: nothing more can be queued now
    training.take_over_done(1, seen)
    job = training.current_run(1)
    assert job is not None
    job.delete()  # it is over and forgotten
    assert training.queue.get_job_ids() == []
    assert sweeper.sweep() == [1]
    assert len(training.queue.get_job_ids()) == 1


def test_a_rollback_does_not_by_itself_make_a_project_due(
    sweeper: Sweeper, store: ExampleStore, due_settings: Settings, connection: redis.Redis
) -> None:
    versions = ProjectVersions(due_settings.models_dir(), 1)
    annotate(store, 1, 2, 3)
    publish(versions, 1, store.newest_event(1) or "")
    annotate(store, 4, 5, 6)
    publish(versions, 2, store.newest_event(1) or "")
    versions.make_current(1)
    assert sweeper.sweep() == []
    annotate(store, 7)
    assert sweeper.sweep() == []
    age(connection, store, 61)
    assert sweeper.sweep() == [1]


def test_what_a_rejected_version_has_learned_is_not_learned_again_until_more_comes(
    sweeper: Sweeper, store: ExampleStore, due_settings: Settings, connection: redis.Redis
) -> None:
    versions = ProjectVersions(due_settings.models_dir(), 1)
    annotate(store, 1, 2, 3)
    publish(versions, 1, store.newest_event(1) or "")
    annotate(store, 4, 5, 6)
    publish(versions, 2, store.newest_event(1) or "", REJECTED)
    age(connection, store, 1000)  # the run was killed between rejecting and saying so
    assert sweeper.sweep() == []
    assert store.behind() == {}
    annotate(store, 7, 8)
    assert sweeper.sweep() == []
    annotate(store, 9)
    assert sweeper.sweep() == [1]


def test_a_version_from_elsewhere_that_has_learned_no_annotation_makes_its_project_due(
    sweeper: Sweeper, store: ExampleStore, due_settings: Settings
) -> None:
    versions = ProjectVersions(due_settings.models_dir(), 1)
    annotate(store, 1, 2, 3)
    publish(versions, 1, store.newest_event(1) or "")
    assert (sweeper.sweep(), store.behind()) == ([], {})
    publish(versions, 2, BEGINNING)
    assert sweeper.sweep() == [1]
    publish(versions, 3, store.newest_event(1) or "")
    assert (sweeper.sweep(), store.behind()) == ([], {})


def test_a_version_from_elsewhere_waits_like_annotations_do(
    sweeper: Sweeper, store: ExampleStore, due_settings: Settings, connection: redis.Redis
) -> None:
    versions = ProjectVersions(due_settings.models_dir(), 1)
    annotate(store, 1)
    publish(versions, 1, store.newest_event(1) or "")
    sweeper.sweep()
    publish(versions, 2, BEGINNING)
    assert (sweeper.sweep(), list(store.behind())) == ([], [1])
    age(connection, store, 61)
    assert sweeper.sweep() == [1]


def test_a_version_from_elsewhere_that_is_kept_aside_makes_nothing_due(
    sweeper: Sweeper, store: ExampleStore, due_settings: Settings
) -> None:
    versions = ProjectVersions(due_settings.models_dir(), 1)
    annotate(store, 1, 2, 3)
    publish(versions, 1, store.newest_event(1) or "")
    publish(versions, 2, store.newest_event(1) or "", REJECTED)  # as `train` does without --publish
    assert (sweeper.sweep(), store.behind()) == ([], {})
    annotate(store, 4, 5)
    assert sweeper.sweep() == []
    annotate(store, 6)
    assert sweeper.sweep() == [1]


def test_a_restarted_sweeper_finds_a_new_line_that_nobody_noticed(
    connection: redis.Redis, store: ExampleStore, due_settings: Settings
) -> None:
    annotate(store, 1, 2, 3)
    publish(ProjectVersions(due_settings.models_dir(), 1), 1, BEGINNING)
    connection.delete(BEHIND_KEY)
    assert Sweeper(connection, due_settings).sweep() == [1]
