"""Changes on disk while Redis cannot take them, and their way into Redis once it can.

Not here: how they are recorded (recording.py), and what an event means (toxicity/label_studio.py). Each change is one file,
written through to the disk before its event is answered. To record one twice changes nothing, so its file is removed only after.
"""

import dataclasses
import fcntl
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from backend.faults import place_of
from toxicity.files import sync
from toxicity.label_studio import Annotation, Changes

logger = logging.getLogger(__name__)

Record = Callable[[Changes], object]

SUFFIX = ".json"
UNUSABLE = ".unusable"
DRAIN_SECONDS = 0.5
PASSING = ("OOM", "MISCONF", "READONLY", "LOADING", "BUSY", "MASTERDOWN", "NOREPLICAS", "NOAUTH", "WRONGPASS", "NOPERM")
"""What Redis calls the faults of its own that pass; any other error in its answer is the change's fault, and stays."""


class SpoolError(Exception):
    """A change could be kept neither in Redis nor on the disk; the message says what to look at."""


class Spool:
    """The changes that wait, of all processes that share a folder. Safe to use from several threads."""

    def __init__(self, folder: Path, record: Record) -> None:
        """`record` is given each change, in the order in which they came; it may raise redis.RedisError."""
        self._folder = folder
        self._record = record
        self._naming = threading.Lock()
        self._last_name = 0
        self._stopping = threading.Event()
        self._drainer = threading.Thread(target=self._drain_again_and_again, name="drain-spool", daemon=True)

    def start(self) -> None:
        """Begin to record what is left from before, and what is added."""
        self._drainer.start()

    def close(self) -> None:
        """Stop; what is left is recorded after the next start."""
        self._stopping.set()
        if self._drainer.is_alive():
            self._drainer.join()

    def add(self, changes: Changes) -> None:
        """Keep changes; they are on the disk when this returns.

        Raises:
            SpoolError: the disk is full or not writable; nothing was kept.
        """
        name = f"{self._next_number():020d}-{uuid.uuid4().hex}"
        aside = self._folder / f".{name}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                aside.write_text(changes_to_json(changes), encoding="ascii")
                sync(aside)
                aside.rename(self._folder / (name + SUFFIX))
            finally:
                aside.unlink(missing_ok=True)
            sync(self._folder)
        except OSError as error:
            raise SpoolError(
                f"Redis cannot take this event, and {self._folder} cannot keep it ({error.strerror}): it is not recorded."
            ) from error

    def _next_number(self) -> int:
        with self._naming:
            self._last_name = max(time.time_ns(), self._last_name + 1)
            return self._last_name

    def is_empty(self) -> bool:
        """Whether nothing waits. While something does, what comes after it has to wait as well: order is kept."""
        return not self.waiting()

    def waiting(self) -> list[Path]:
        """Return the files of what waits, the oldest first."""
        return sorted(self._folder.glob(f"[0-9]*{SUFFIX}"))

    def drain(self) -> int:
        """Record what waits, in order; return how many changes were.

        Raises:
            redis.RedisError: Redis still cannot take them; what is left waits on.
        """
        recorded = 0
        with self._alone() as alone:
            for file in self.waiting() if alone else []:
                try:
                    self._record(changes_from_json(file.read_text(encoding="ascii")))
                except (ValueError, KeyError, TypeError) as error:
                    self._set_aside(file, error)
                except redis.ResponseError as error:
                    if any(word in str(error) for word in PASSING):
                        raise
                    self._set_aside(file, error)
                else:
                    file.unlink()
                    recorded += 1
        return recorded

    @staticmethod
    def _set_aside(file: Path, error: Exception) -> None:
        """One change that cannot be recorded must not hold up all that come after it."""
        aside = file.with_suffix(UNUSABLE)
        logger.error(
            "%s cannot be recorded (%s at %s); it is kept as %s", file, type(error).__name__, place_of(error), aside.name
        )
        file.rename(aside)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process drains at the moment: order is kept only by one."""
        if self.is_empty():
            yield False
            return
        with (self._folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _drain_again_and_again(self) -> None:
        was_told = False
        while not self._stopping.wait(DRAIN_SECONDS):
            try:
                recorded = self.drain()
            except redis.RedisError as error:
                if not was_told:
                    logger.warning(
                        "Redis cannot take %d spooled changes (%s); they wait in %s",
                        len(self.waiting()),
                        type(error).__name__,
                        self._folder,
                    )
                was_told = True
            except Exception as error:  # the thread must outlive any fault, or changes would wait for ever
                logger.error("draining %s failed: %s at %s", self._folder, type(error).__name__, place_of(error))
            else:
                was_told = False
                if recorded:
                    logger.info("%d spooled changes recorded", recorded)


def changes_to_json(changes: Changes) -> str:
    """Return changes as ASCII JSON, any text in them escaped."""
    return json.dumps(dataclasses.asdict(changes))


def changes_from_json(text: str) -> Changes:
    """Return the changes that changes_to_json wrote.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    values: dict[str, Any] = json.loads(text)
    annotations = tuple(
        Annotation(**{**annotation, "targets": None if annotation["targets"] is None else tuple(annotation["targets"])})
        for annotation in values.pop("annotations")
    )
    values |= {name: tuple(values[name]) for name in ("deleted_annotations", "deleted_tasks")}
    return Changes(**values, annotations=annotations)
