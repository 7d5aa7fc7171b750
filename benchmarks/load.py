"""What is asked of a server: one large request, single ones after each other, and many clients at once.

Not here: the servers (servers.py). Each request is a connection of its own, as Label Studio's are.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np

TIMEOUT = 300.0
PROJECT = 1  # in Label Studio
Task = dict[str, Any]


@dataclass
class Observed:
    """Answers as clients saw them: when each came (s, monotonic), how long it took (s), its version; and what failed."""

    at: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    versions: list[frozenset[str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def percentile(self, percent: float) -> float:
        """Return how long so many percent of the answers took at most, in seconds."""
        return float(np.percentile(self.seconds, percent))

    def require_answers(self) -> None:
        """Refuse to measure where requests fail.

        Raises:
            RuntimeError: one did.
        """
        if self.failures:
            raise RuntimeError(
                f"{len(self.failures)} of {len(self.seconds) + len(self.failures)} requests failed: {self.failures[0]}"
            )


def task(text: str, number: int = 1) -> Task:
    """Return a comment as Label Studio sends it."""
    return {"id": number, "data": {"text": text}, "annotations": [], "predictions": [], "project": PROJECT}


def ask(port: int, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Return the predictions of one request.

    Raises:
        OSError: no connection, or an answer that is no 200.
    """
    answer = post(port, "/predict", {"tasks": tasks})
    results: list[dict[str, Any]] = answer["results"]
    return results


def post(port: int, path: str, body: Any) -> Any:
    """Return what a POST of JSON is answered.

    Raises:
        OSError: no connection, or an answer that is none of 200 and 201.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    except http.client.HTTPException as error:
        raise OSError(type(error).__name__) from error
    finally:
        connection.close()
    if response.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
        raise OSError(f"{path} was answered {response.status}")
    return json.loads(content)


def bulk_rate(port: int, texts: Sequence[str]) -> float:
    """Return comments a second of one request with all of them."""
    tasks = [task(text, number) for number, text in enumerate(texts, 1)]
    started = time.perf_counter()
    ask(port, tasks)
    return len(texts) / (time.perf_counter() - started)


def one_after_another(port: int, texts: Sequence[str]) -> Observed:
    """Ask for one comment at a time."""
    observed = Observed()
    for text in texts:
        _ask_and_note(port, [text], observed)
    observed.require_answers()
    return observed


@contextmanager
def clients(port: int, texts: Sequence[str], count: int, tasks: int = 1) -> Iterator[Observed]:
    """Let so many clients ask for comment after comment (so many tasks at once), each for others, beside the caller."""
    observed, stopping = Observed(), threading.Event()

    def client(first: int) -> None:
        for number in range(first, 10**9, count):
            if stopping.is_set():
                return
            _ask_and_note(port, [texts[(number * tasks + each) % len(texts)] for each in range(tasks)], observed)

    threads = [threading.Thread(target=client, args=(first,)) for first in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield observed
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def concurrent_rate(port: int, texts: Sequence[str], count: int, seconds: float) -> float:
    """Return comments a second that so many clients get together."""
    with clients(port, texts, count) as observed:
        started = time.perf_counter()
        time.sleep(seconds)
        answered = len(observed.seconds) / (time.perf_counter() - started)
    observed.require_answers()
    return answered


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition.

    Raises:
        RuntimeError: it did not come about in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come about within {seconds:.0f} s")
        time.sleep(0.05)


def _ask_and_note(port: int, texts: Sequence[str], observed: Observed) -> None:
    started = time.perf_counter()
    try:
        results = ask(port, [task(text) for text in texts])
    except OSError as error:
        observed.failures.append(str(error))
        return
    ended = time.perf_counter()
    observed.at.append(ended)
    observed.seconds.append(ended - started)
    observed.versions.append(frozenset(str(result["model_version"]) for result in results))
