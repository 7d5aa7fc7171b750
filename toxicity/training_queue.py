"""Training runs on the RQ queue: who is due, one job a project, and which functions a job may name.

Not here: what a run does (worker/training.py, named here by a string only). The queue says no more than 'this project is
behind'; a job that gets lost costs a second, never an example, because the sweeper asks this module again and again.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import redis
from rq import Queue
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus, Retry
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from toxicity.settings import Settings

logger = logging.getLogger(__name__)

QUEUE = "toxicity-training"
TAKE_OVER_KEY = "toxicity:take-over"
TRAINING_FUNCTION = "worker.training.train_project"
RETRIES = 2
KEPT_SECONDS = 7 * 24 * 3600  # how long a finished or failed run can be looked up
LOST_AFTER = 30  # seconds that a queued job may be in no list: longer than a worker takes from taking it to starting it

_NEXT_RUN_LUA = "if (redis.call('GET', KEYS[1]) or '0') == ARGV[1] then return redis.call('INCR', KEYS[1]) end"

_DONE_LUA = "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end"


class TrainingJob(Job):
    """A job that runs nothing but a training run: whoever can write to Redis must not thereby run code here.

    RQ would also import and call what a job names as its callbacks, and fetch the addresses of its webhooks.
    """

    success_callback = None
    failure_callback = None
    stopped_callback = None

    def send_webhooks(self, *args: object, **kwargs: object) -> None:
        """Fetch nothing."""

    @property
    def func(self) -> Callable[..., Any] | None:
        """Return the training function.

        Raises:
            PermissionError: the job names another function, or has other arguments than one project's number.
        """
        if self.func_name != TRAINING_FUNCTION or self.instance is not None:
            raise PermissionError(f"Job {self.id} names {self.func_name!r}; this queue runs {TRAINING_FUNCTION} only.")
        if self.kwargs or len(self.args) != 1 or type(self.args[0]) is not int:  # a number: it becomes part of a path
            raise PermissionError(f"Job {self.id} has {len(self.args)} arguments; a training run takes one project's number.")
        function: Callable[..., Any] | None = super().func
        return function


def is_due(pending: int, behind_seconds: float, settings: Settings) -> bool:
    """Tell whether a project with `pending` unlearned examples, the first of them so many seconds old, is to be trained."""
    return pending > 0 and (pending >= settings.train_after or behind_seconds >= settings.train_wait)


class TrainingQueue:
    """Queues training runs, at most one waiting or running for each project."""

    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        """Keep a client and the settings; Redis is not asked for anything yet."""
        self._redis = connection
        self._settings = settings
        self.queue = Queue(QUEUE, connection=connection, serializer=JSONSerializer, job_class=TrainingJob)

    def request(self, project: int) -> str:
        """Queue a run for a project unless one is queued or running; return that run's job id.

        Raises:
            redis.RedisError: nothing was queued.
        """
        for _ in range(2):
            run = self._run_number(project)
            job_id = f"train-{project}-{run}"
            try:
                self._enqueue(project, job_id)
                logger.info("project %d: training run %s queued", project, job_id)
            except DuplicateJobError:
                if self._is_over(job_id):
                    # The number moves on only if nobody else moved it meanwhile, so two callers never start two runs.
                    self._redis.eval(_NEXT_RUN_LUA, 1, self._run_key(project), str(run))
                    continue
            return job_id
        return job_id

    def request_take_over(self, project: int) -> None:
        """Ask that the next run first takes over what Label Studio has and its webhooks never sent.

        Raises:
            redis.RedisError: it was not asked.
        """
        self._redis.hincrby(TAKE_OVER_KEY, str(project), 1)

    def take_over_requested(self, project: int) -> int:
        """Return how often a take-over was asked for since the last one; 0 for never."""
        return int(cast(bytes, self._redis.hget(TAKE_OVER_KEY, str(project)) or b"0"))

    def take_over_done(self, project: int, requests: int) -> None:
        """Forget the requests that were answered, unless another one came meanwhile: that one wants a take-over of its own."""
        self._redis.eval(_DONE_LUA, 1, TAKE_OVER_KEY, str(project), str(requests))

    def awaiting_take_over(self) -> list[int]:
        """Return the projects for which a take-over was asked and not yet done."""
        return sorted(int(project) for project in cast(list[bytes], self._redis.hkeys(TAKE_OVER_KEY)))

    def current_run(self, project: int) -> Job | None:
        """Return the project's newest run, whatever its state; None where there was none (or it is forgotten)."""
        try:
            return self._fetch(f"train-{project}-{self._run_number(project)}")
        except NoSuchJobError:
            return None

    def failed_seconds_ago(self, project: int) -> float | None:
        """Return how long ago the project's newest run failed for good; None if it did not."""
        job = self.current_run(project)
        if job is None or job.get_status(refresh=False) != JobStatus.FAILED or job.ended_at is None:
            return None
        return (datetime.now(UTC) - job.ended_at).total_seconds()

    def _enqueue(self, project: int, job_id: str) -> None:
        self.queue.enqueue_call(
            TRAINING_FUNCTION,
            args=(project,),
            job_id=job_id,
            unique=True,
            timeout=self._settings.train_timeout,
            result_ttl=KEPT_SECONDS,
            failure_ttl=KEPT_SECONDS,
            retry=Retry(max=RETRIES),
            description=f"train project {project}",
            meta={"project": project},
        )

    def _fetch(self, job_id: str) -> Job:
        return TrainingJob.fetch(job_id, connection=self._redis, serializer=JSONSerializer)

    def _is_over(self, job_id: str) -> bool:
        """Tell whether a job ended, or is lost: marked as queued, but in no list from which a worker would take it."""
        try:
            job = self._fetch(job_id)
            status = job.get_status()
        except (NoSuchJobError, InvalidJobOperation):  # the latter where it expires between the two calls
            return True
        if status in (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED):
            return True
        if status != JobStatus.QUEUED or job_id in self.queue.get_job_ids():
            return False
        started = StartedJobRegistry(QUEUE, connection=self._redis, job_class=TrainingJob, serializer=JSONSerializer)
        waited = (datetime.now(UTC) - (job.enqueued_at or job.created_at)).total_seconds()
        return job_id not in started.get_job_ids() and waited > LOST_AFTER

    def _run_number(self, project: int) -> int:
        return int(cast(bytes, self._redis.get(self._run_key(project)) or b"0"))

    @staticmethod
    def _run_key(project: int) -> str:
        return f"toxicity:{{{project}}}:run"
