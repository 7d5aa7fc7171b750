"""Queues a training run for every project that is due, again and again: what makes training certain to happen.

Not here: the rule (toxicity/training_queue.py: is_due) and the run (training.py). Nothing depends on a message arriving: each
sweep compares each project's events with its newest version's watermark.
"""

import logging
import threading

import redis

from toxicity.examples import BEGINNING, ExampleStore
from toxicity.settings import Settings
from toxicity.training_queue import TrainingQueue, is_due
from toxicity.versions import CORPUS_SOURCE, STARTER_NUMBER, ProjectVersions, VersionError

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
LEAST_REST_SECONDS = 10.0


class Sweeper:
    """Runs sweeps in a thread of its own until it is stopped."""

    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        """Keep a client of its own; start() begins."""
        self._settings = settings
        self._examples = ExampleStore(connection)
        self._queue = TrainingQueue(connection, settings)
        self._newest: dict[int, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin to sweep, once a second."""
        self._thread.start()

    def stop(self) -> None:
        """End after the sweep under way."""
        self._stopping.set()

    def sweep(self) -> list[int]:
        """Queue what is due or was asked for; return those projects."""
        # What was asked for while a run was on, or in the moment before a crash.
        requested = {project for project in self._queue.awaiting_take_over() if not self._resting(project)}
        now = self._examples.now()
        self._notice_new_lines()
        for project, since in self._examples.behind().items():
            watermark = self._watermark(project)
            newest = self._examples.newest_event(project)  # read first: what comes meanwhile is not overlooked
            pending = len(self._examples.changed_since(project, watermark, at_most=self._settings.train_after))
            if not pending:
                self._examples.caught_up(project, newest or watermark)
            elif is_due(pending, now - since, self._settings) and not self._resting(project):
                requested.add(project)
        for project in requested:
            self._queue.request(project)
        return sorted(requested)

    def _notice_new_lines(self) -> None:
        """A version may come from elsewhere (`train --publish`), with annotations that it has not learned."""
        for project in self._examples.projects():
            newest = max(ProjectVersions(self._settings.models_dir(), project).numbers(), default=STARTER_NUMBER)
            if self._newest.get(project) != newest:
                self._examples.caught_up(project, self._watermark(project))
                self._newest[project] = newest

    def _watermark(self, project: int) -> str:
        """What the newest version has learned, be it live or rolled back: a rollback must not by itself cause a run."""
        versions = ProjectVersions(self._settings.models_dir(), project)
        for number in reversed(versions.numbers()):
            try:
                manifest = versions.manifest(number)
                if manifest.verdict.accepted or manifest.training.get("source") != CORPUS_SOURCE:
                    return manifest.watermark
            except VersionError as error:
                logger.error("project %d: %s", project, error)
        return BEGINNING

    def _resting(self, project: int) -> bool:
        """After a run that failed for good the project rests, so that a fault does not become a hot loop."""
        failed = self._queue.failed_seconds_ago(project)
        return failed is not None and failed < max(self._settings.train_wait, LEAST_REST_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(SWEEP_SECONDS):
            try:
                self.sweep()
            except Exception:  # the thread must outlive any fault, or training would stop for ever
                logger.exception("a sweep failed; the next one comes in %s s", SWEEP_SECONDS)
