"""Training runs on the queue: when a project is due, one run for each project, and no function but the training run."""

import signal
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from rq import SimpleWorker
from rq.callbacks import Callback
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.utils import utcformat

from toxicity.settings import Settings
from toxicity.training_queue import LOST_AFTER, QUEUE, TRAINING_FUNCTION, TrainingJob, TrainingQueue, is_due


@pytest.fixture
def training(connection: redis.Redis, redis_settings: Settings) -> TrainingQueue:
    return TrainingQueue(connection, redis_settings)


@pytest.fixture
def signals() -> Iterator[None]:
    """An RQ worker installs signal handlers and leaves them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def take(training: TrainingQueue, status: JobStatus) -> Job:
    """Take project 1's run off the queue, as a worker does, and leave it in a state."""
    job = training.current_run(1)
    assert job is not None
    training.queue.remove(job)
    job.set_status(status)
    return job


def work(connection: redis.Redis) -> None:
    worker = SimpleWorker([QUEUE], connection=connection, serializer=JSONSerializer, job_class=TrainingJob)
    worker.work(burst=True, logging_level="CRITICAL")


@pytest.mark.parametrize(
    ("pending", "behind_seconds", "due"),
    [
        (0, 0, False),
        (0, 10_000, False),
        (1, 0, False),
        (1, 299, False),
        (1, 300, True),
        (1, 301, True),
        (15, 299, False),
        (16, 0, True),
        (16, 10_000, True),
        (17, 0, True),
        (1, -3600, False),
    ],
)
def test_a_project_is_due_by_count_or_by_age(pending: int, behind_seconds: float, due: bool) -> None:
    assert is_due(pending, behind_seconds, Settings(train_after=16, train_wait=300)) is due


def test_asking_twice_queues_one_run(training: TrainingQueue) -> None:
    assert [training.request(1), training.request(1)] == ["train-1-0", "train-1-0"]
    assert training.queue.get_job_ids() == ["train-1-0"]


def test_a_run_names_the_training_function_and_carries_the_project_only(
    training: TrainingQueue, connection: redis.Redis, redis_settings: Settings
) -> None:
    job = TrainingJob.fetch(training.request(1), connection=connection, serializer=JSONSerializer)
    assert (job.func_name, job.args, job.kwargs, job.meta) == (TRAINING_FUNCTION, [1], {}, {"project": 1})
    assert (job.description, job.timeout) == ("train project 1", redis_settings.train_timeout)
    assert job.retries_left == 2


@pytest.mark.parametrize("status", [JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED])
def test_a_run_that_is_over_lets_the_next_be_queued_under_a_new_id(training: TrainingQueue, status: JobStatus) -> None:
    training.request(1)
    take(training, status)
    assert [training.request(1), training.request(1)] == ["train-1-1", "train-1-1"]
    assert training.queue.get_job_ids() == ["train-1-1"]


def test_a_forgotten_run_lets_the_next_be_queued(training: TrainingQueue, connection: redis.Redis) -> None:
    training.request(1)
    take(training, JobStatus.FINISHED)
    training.request(1)
    take(training, JobStatus.FINISHED)
    connection.delete("rq:job:train-1-1")
    assert training.current_run(1) is None
    training.request(1)
    assert len(training.queue.get_job_ids()) == 1


def test_a_running_run_blocks_the_next(training: TrainingQueue, connection: redis.Redis) -> None:
    training.request(1)
    job = take(training, JobStatus.STARTED)
    with connection.pipeline() as pipeline:
        Execution.create(job, ttl=60, pipeline=pipeline)
        pipeline.execute()
    assert training.request(1) == "train-1-0"
    assert training.queue.get_job_ids() == []


@pytest.mark.parametrize(("seconds", "expected"), [(LOST_AFTER - 5, "train-1-0"), (LOST_AFTER + 5, "train-1-1")])
def test_a_queued_run_that_is_in_no_list_is_replaced_after_a_while(
    training: TrainingQueue, connection: redis.Redis, seconds: int, expected: str
) -> None:
    training.request(1)
    take(training, JobStatus.QUEUED)
    connection.hset("rq:job:train-1-0", "enqueued_at", utcformat(datetime.now(UTC) - timedelta(seconds=seconds)))
    assert training.request(1) == expected
    assert training.queue.get_job_ids() == ([expected] if expected == "train-1-1" else [])


def test_a_run_that_waits_long_in_the_queue_is_not_lost(training: TrainingQueue, connection: redis.Redis) -> None:
    training.request(1)
    connection.hset("rq:job:train-1-0", "enqueued_at", utcformat(datetime.now(UTC) - timedelta(days=1)))
    assert training.request(1) == "train-1-0"
    assert training.queue.get_job_ids() == ["train-1-0"]


@pytest.mark.parametrize("status", [None, JobStatus.FAILED])
def test_twenty_threads_that_ask_at_once_leave_one_run_in_the_queue(training: TrainingQueue, status: JobStatus | None) -> None:
    if status is not None:
        training.request(1)
        take(training, status)
    barrier = threading.Barrier(20)

    def ask(_: int) -> str:
        barrier.wait()
        return training.request(1)

    with ThreadPoolExecutor(20) as threads:
        answers = set(threads.map(ask, range(20)))
    expected = "train-1-0" if status is None else "train-1-1"
    assert answers == {expected}
    assert training.queue.get_job_ids() == [expected]


def test_failed_seconds_ago_counts_from_the_newest_runs_failure(training: TrainingQueue, connection: redis.Redis) -> None:
    assert training.failed_seconds_ago(1) is None
    training.request(1)
    assert training.failed_seconds_ago(1) is None
    take(training, JobStatus.FAILED)
    connection.hset("rq:job:train-1-0", "ended_at", utcformat(datetime.now(UTC) - timedelta(seconds=100)))
    assert training.failed_seconds_ago(1) == pytest.approx(100, abs=5)
    training.request(1)
    assert training.failed_seconds_ago(1) is None


@pytest.mark.parametrize("function", ["os.system", "worker.training.learn_and_publish", "worker.training.train_project.__call__"])
def test_a_job_with_another_function_is_refused(training: TrainingQueue, function: str) -> None:
    job = training.queue.enqueue_call(function, args=("true",))
    with pytest.raises(PermissionError, match="this queue runs worker"):
        _ = job.func


@pytest.mark.usefixtures("signals")
def test_a_worker_that_meets_a_foreign_job_fails_it_and_lives(
    training: TrainingQueue, connection: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []
    stand_in = types.ModuleType("worker.training")
    vars(stand_in)["train_project"] = trained.append
    monkeypatch.setitem(sys.modules, "worker.training", stand_in)
    monkeypatch.setattr("worker.training", stand_in, raising=False)
    foreign = training.queue.enqueue_call("os.system", args=(f"touch {tmp_path}/broken_in",))
    training.request(1)
    work(connection)
    result = foreign.latest_result()
    assert result is not None
    assert "PermissionError: Job" in str(result.exc_string)
    assert foreign.get_status() == JobStatus.FAILED
    assert not (tmp_path / "broken_in").exists()
    own = training.current_run(1)
    assert own is not None
    assert (own.get_status(), trained) == (JobStatus.FINISHED, [1])


called: list[str] = []


def break_in(*_: object) -> None:
    """What a forged job names as its callback."""
    called.append("broken in")


@pytest.mark.usefixtures("signals")
def test_a_worker_does_not_run_a_foreign_jobs_callback(training: TrainingQueue, connection: redis.Redis) -> None:
    called.clear()
    training.queue.enqueue_call("os.system", args=("true",), on_failure=Callback(f"{__name__}.break_in"))
    work(connection)
    assert called == []
