"""Predictions of all requests on a few threads, in batches over whatever waits, and what was computed remembered.

Not here: the network (toxicity/predicting.py), and which version answers (live_model.py). While batches are computed, requests
gather for the next: nobody waits for a batch to fill. Small requests and the batches of large ones take turns, so that a
moderator who opens a task is not kept waiting by 3,000 that are pre-labelled.
"""

import hashlib
import itertools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from backend.faults import place_of
from toxicity.labels import LABELS
from toxicity.predicting import COMMENTS_PER_PASS, TOKENS_PER_BATCH, FloatArray, batches_by_tokens
from toxicity.versions import LoadedVersion, Predictor

logger = logging.getLogger(__name__)

LONGEST_SECONDS = 80.0  # of a request: Label Studio gives up after 100 s, and 10 s it may have waited for its turn (app.py)
COMPUTING_THREADS = 2  # one batch alone leaves processors idle between its operations: a fifth of the speed on two
SMALL = 8  # comments; a request with fewer shares its batches with others
FIRST_PORTION = 128  # of a large request: the sooner it is tokenized, the sooner something is computed
PORTIONS_AHEAD = 2  # portions of one request that are tokenized and not yet computed


class OutOfTimeError(Exception):
    """A request was too large for the time that Label Studio gives it; what was computed is remembered."""


@dataclass(eq=False)
class Job:
    """Comments of one request that have to be computed by one network: their ids, and their probabilities once done."""

    predictor: Predictor
    encoded: Sequence[Sequence[int]]
    keys: Sequence[tuple[int, bytes]]  # of the cache, for each of them
    request: object  # the same for all jobs of one request: large ones take turns by request
    probabilities: FloatArray = field(init=False)
    waiting: "deque[npt.NDArray[np.intp]]" = field(init=False)  # rows of `encoded`, as batches
    left: int = field(init=False)
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Plan its batches; a small job's rows may be computed with others'."""
        self.probabilities = np.empty((len(self.encoded), len(LABELS)), np.float32)
        self.left = len(self.encoded)
        lengths = [len(ids) for ids in self.encoded]
        single = (np.array([row], np.intp) for row in range(len(lengths)))
        self.waiting = deque(single if self.is_small else batches_by_tokens(lengths))

    @property
    def is_small(self) -> bool:
        """Whether it waits for others' batches at most once."""
        return len(self.encoded) < SMALL


@dataclass(eq=False)
class Portion:
    """Comments of one request: what the cache knew, and the job that computes the rest."""

    probabilities: FloatArray
    missing: dict[bytes, list[int]]  # digest of a text -> the rows that have it
    job: Job | None


class Batching:
    """The threads that compute, and the cache of what they computed. Safe to use from several threads."""

    def __init__(self, cached_predictions: int, computing_threads: int = COMPUTING_THREADS) -> None:
        """Keep so many probabilities; the threads start with the first prediction."""
        self._computing_threads = computing_threads
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._large_was_last = False
        self._threads: list[threading.Thread] = []
        self._cache: LRUCache[tuple[int, bytes], bytes] = LRUCache(cached_predictions)
        self._cache_lock = threading.Lock()
        self._serials: weakref.WeakKeyDictionary[Predictor, int] = weakref.WeakKeyDictionary()
        self._next_serial = itertools.count()

    def predict(self, live: LoadedVersion, comments: Sequence[str]) -> FloatArray:
        """Return a version's calibrated probabilities of shape (len(comments), 6), once all are there.

        Raises:
            OutOfTimeError: they were not within LONGEST_SECONDS. Asked again, it goes on where it ended.
        """
        deadline = time.monotonic() + LONGEST_SECONDS
        raw = np.empty((len(comments), len(LABELS)), np.float32)
        pending: deque[tuple[int, Portion]] = deque()
        request = object()
        try:
            for start, portion in _portions(comments):
                pending.append((start, self._begun(live.classifier, portion, request)))
                if len(pending) > PORTIONS_AHEAD:
                    _collect(raw, *pending[0], deadline)
                    pending.popleft()
            for start, begun in pending:
                _collect(raw, start, begun, deadline)
        except BaseException:
            self._abandon([portion.job for _, portion in pending if portion.job is not None])
            raise
        return live.calibration(raw)

    def _abandon(self, jobs: Sequence[Job]) -> None:
        """Compute no more of jobs whose request has ended."""
        with self._changed:
            for job in jobs:
                job.waiting.clear()
                if job in self._jobs:
                    self._jobs.remove(job)

    def _begun(self, predictor: Predictor, comments: Sequence[str], request: object) -> Portion:
        probabilities = np.empty((len(comments), len(LABELS)), np.float32)
        missing: dict[bytes, list[int]] = {}
        digests = [hashlib.blake2b(comment.encode("utf-8", "surrogatepass"), digest_size=16).digest() for comment in comments]
        with self._cache_lock:
            serial = self._serial(predictor)
            for row, digest in enumerate(digests):
                known = self._cache.get((serial, digest))
                if known is None:
                    missing.setdefault(digest, []).append(row)
                else:
                    probabilities[row] = np.frombuffer(known, np.float32)
        if not missing:
            return Portion(probabilities, missing, None)
        encoded = [predictor.encode(comments[rows[0]]) for rows in missing.values()]
        job = Job(predictor, encoded, [(serial, digest) for digest in missing], request)
        with self._changed:
            self._start_threads()
            self._jobs.append(job)
            self._changed.notify_all()
        return Portion(probabilities, missing, job)

    def _start_threads(self) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]  # none is, in a process that was forked
        while len(self._threads) < self._computing_threads:
            self._threads.append(threading.Thread(target=self._compute, name="compute-batches", daemon=True))
            self._threads[-1].start()

    def _serial(self, predictor: Predictor) -> int:
        """A number for each network: another one may get the address of one that is gone."""
        return self._serials.setdefault(predictor, next(self._next_serial))

    def _compute(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs)
                batch = self._next_batch()
            self._finish(batch, _computed(batch))
            del batch  # or the last network of a batch would stay until the next

    def _finish(self, batch: Sequence[tuple[Job, int]], answers: Sequence[FloatArray | Exception]) -> None:
        with self._cache_lock:
            for (job, row), answer in zip(batch, answers, strict=True):
                if not isinstance(answer, Exception):
                    job.probabilities[row] = answer
                    self._cache[job.keys[row]] = answer.tobytes()
        with self._changed:  # another thread may finish other rows of the same job
            for (job, _), answer in zip(batch, answers, strict=True):
                job.left -= 1
                if isinstance(answer, Exception):
                    job.error = job.error or answer
                    self._abandon([job])
                if job.left == 0 or job.error is not None:
                    job.done.set()

    def _next_batch(self) -> list[tuple[Job, int]]:
        """Take the rows of one batch off the jobs that wait."""
        small = [job for job in self._jobs if job.is_small]
        large = next((job for job in self._jobs if not job.is_small), None)
        if large is None or (small and self._large_was_last):
            batch = _shared(small)
            self._large_was_last = False
        else:
            batch = [(large, int(row)) for row in large.waiting.popleft()]
            self._large_was_last = True
            # Large requests take turns too; of one request the oldest portion stays the first.
            others = [job for job in self._jobs if job.request is not large.request]
            self._jobs = deque([*others, *(job for job in self._jobs if job.request is large.request and job.waiting)])
        self._jobs = deque(job for job in self._jobs if job.waiting)
        return batch


def _portions(comments: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    start, size = 0, FIRST_PORTION
    while start < len(comments):
        yield start, comments[start : start + size]
        start, size = start + size, COMMENTS_PER_PASS


def _shared(small: Sequence[Job]) -> list[tuple[Job, int]]:
    """One batch over several small jobs of one network: the oldest's, and what fits beside it, in the order they came."""
    predictor, tokens = small[0].predictor, 0
    taken: list[tuple[Job, int]] = []
    for job in small:
        while job.predictor is predictor and job.waiting:
            row = int(job.waiting[0][0])
            tokens += len(job.encoded[row])
            if taken and tokens > TOKENS_PER_BATCH:
                return taken
            taken.append((job, row))
            job.waiting.popleft()
    return taken


def _collect(into: FloatArray, start: int, portion: Portion, deadline: float) -> None:
    """Wait for a portion, and write its probabilities where they belong."""
    if portion.job is not None:
        if not portion.job.done.wait(deadline - time.monotonic()):
            raise OutOfTimeError(
                f"{len(into)} comments took longer than {LONGEST_SECONDS:.0f} s, and Label Studio waits no longer. "
                "What was computed is remembered: ask again, or for fewer tasks at once."
            )
        if portion.job.error is not None:
            raise portion.job.error.with_traceback(None)  # it is others' too, and would keep their batch in memory
        for row, rows in enumerate(portion.missing.values()):
            portion.probabilities[rows] = portion.job.probabilities[row]
    into[start : start + len(portion.probabilities)] = portion.probabilities


def _computed(batch: Sequence[tuple[Job, int]]) -> list[FloatArray | Exception]:
    """Return the probabilities of each row, or why there are none: the thread has to outlive any fault."""
    try:
        answers = batch[0][0].predictor.predict_encoded([job.encoded[row] for job, row in batch])
        if answers.shape != (len(batch), len(LABELS)):
            raise ValueError(f"The network answered with shape {answers.shape}, expected {(len(batch), len(LABELS))}.")
    except Exception as failure:
        jobs = list(dict.fromkeys(job for job, _ in batch))
        if len(jobs) > 1:  # what fails for one request is not the others' fault
            alone = {job: iter(_computed([each for each in batch if each[0] is job])) for job in jobs}
            return [next(alone[job]) for job, _ in batch]
        logger.error("a batch of %d comments failed: %s at %s", len(batch), type(failure).__name__, place_of(failure))
        return [failure] * len(batch)
    return list(answers)
