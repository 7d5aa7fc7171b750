"""An answered webhook is an annotation that is safe, whatever becomes of Redis: with a real Redis that is stopped for real."""

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from backend.app import create_app
from backend.batching import Batching
from backend.live_model import LiveModels
from backend.model import Services
from backend.recording import Recording
from backend.spool import Spool, changes_from_json, changes_to_json
from tests.conftest import FaultReport, OwnRedis, load_without_tensorflow
from tests.test_app import annotation_event
from toxicity.comments import LabelledComment
from toxicity.examples import BEGINNING, ExampleStore
from toxicity.label_studio import Annotation, Changes
from toxicity.labels import LABELS
from toxicity.training_queue import TrainingQueue

LONGEST_ANSWER = 1.0  # Label Studio waits no longer; what is aimed at is a fifth of it


def changes(number: int) -> Changes:
    return Changes(1, annotations=(Annotation(number, number, "2026-01-01T00:00:00.000000Z", f"text {number}", (1.0,) * 6),))


@pytest.fixture
def recorded() -> list[Changes]:
    return []


@pytest.fixture
def spool(tmp_path: Path, recorded: list[Changes]) -> Spool:
    return Spool(tmp_path / "spool", recorded.append)


texts = st.text(st.characters(exclude_categories=()), max_size=40)
targets = st.none() | st.tuples(*[st.sampled_from([0.0, 1.0, None])] * len(LABELS))
annotations = st.builds(Annotation, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), texts, texts, targets)


@given(
    st.builds(
        Changes,
        st.none() | st.integers(0, 10**18),
        st.lists(annotations, max_size=3).map(tuple),
        st.lists(st.integers(0, 2**63 - 1), max_size=3).map(tuple),
        st.lists(st.integers(0, 2**63 - 1), max_size=3).map(tuple),
        st.booleans(),
        st.booleans(),
        st.integers(0, 9),
    )
)
def test_changes_come_back_as_they_were(given_changes: Changes) -> None:
    assert changes_from_json(changes_to_json(given_changes)) == given_changes


def test_what_was_added_is_recorded_once_and_in_order(spool: Spool, recorded: list[Changes]) -> None:
    for number in range(1, 30):
        spool.add(changes(number))
    assert not spool.is_empty()
    assert spool.drain() == 29
    assert spool.drain() == 0
    assert spool.is_empty()
    assert recorded == [changes(number) for number in range(1, 30)]


def test_another_spool_over_the_same_folder_goes_on_with_what_is_left(tmp_path: Path, recorded: list[Changes]) -> None:
    def record(given_changes: Changes) -> None:
        if len(recorded) == 2:
            raise redis.ConnectionError
        recorded.append(given_changes)

    first = Spool(tmp_path / "spool", record)
    for number in range(1, 6):
        first.add(changes(number))
    with pytest.raises(redis.ConnectionError):
        first.drain()
    assert Spool(tmp_path / "spool", recorded.append).drain() == 3
    assert recorded == [changes(number) for number in range(1, 6)]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"annotations": [{"id": 1}]}', '{"annotations": 3}'])
def test_what_cannot_be_read_is_set_aside_and_holds_up_nothing(
    spool: Spool, recorded: list[Changes], tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    spool.add(changes(1))
    spool.add(changes(2))
    first = spool.waiting()[0]
    first.write_text(content)
    assert spool.drain() == 1
    assert recorded == [changes(2)]
    assert [file.name for file in (tmp_path / "spool").glob("*.unusable")] == [first.with_suffix(".unusable").name]
    assert "cannot be recorded" in caplog.text


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (redis.ResponseError("wrong number of arguments"), False),
        (redis.exceptions.OutOfMemoryError("OOM command not allowed"), True),
        (redis.ResponseError("Error running script: @user_script: 9: -OOM command not allowed"), True),
        (redis.ResponseError("MISCONF Errors writing to the AOF file"), True),
        (redis.exceptions.ReadOnlyError("READONLY You can't write against a read only replica."), True),
        (redis.TimeoutError("Timeout reading from socket"), True),
    ],
)
def test_faults_of_redis_are_waited_for_and_faults_of_a_change_are_not(
    tmp_path: Path, error: redis.RedisError, stays: bool
) -> None:
    def refuse(given_changes: Changes) -> None:
        raise error

    spool = Spool(tmp_path / "spool", refuse)
    spool.add(changes(1))
    if stays:
        with pytest.raises(type(error)):
            spool.drain()
    else:
        spool.drain()
    assert spool.is_empty() is not stays


def test_two_that_drain_at_once_record_nothing_twice(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()
    recorded: list[Changes] = []

    def record(given_changes: Changes) -> None:
        entered.set()
        assert leave.wait(30)
        recorded.append(given_changes)

    first, second = (Spool(tmp_path / "spool", record) for _ in range(2))
    first.add(changes(1))
    draining = threading.Thread(target=first.drain)
    draining.start()
    assert entered.wait(30)
    assert second.drain() == 0
    leave.set()
    draining.join()
    assert recorded == [changes(1)]


def test_nobody_else_can_read_what_waits(spool: Spool, tmp_path: Path) -> None:
    spool.add(changes(1))
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
from backend.spool import Spool, SpoolError
from tests.test_spool import changes
try:
    Spool(Path(sys.argv[1]), print).add(changes(1))
except SpoolError as error:
    print(error)
"""


@pytest.mark.faults
def test_a_full_disk_keeps_nothing_says_so_and_leaves_no_litter(tmp_path: Path, report_fault: FaultReport) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path / "spool")], capture_output=True, text=True, check=True)
    assert "cannot keep it (File too large): it is not recorded" in done.stdout
    assert list((tmp_path / "spool").iterdir()) == []
    report_fault("Redis away and the disk full: 503, and no half file", 1, 0, 0.0)


class Web:
    """The web process' application over a Redis that a test stops, and what Label Studio would see of it."""

    def __init__(self, own: OwnRedis) -> None:
        self.own = own
        self.services = Services(LiveModels(own.settings, load_without_tensorflow), Batching(100), Recording(own.settings))
        self.client: FlaskClient = create_app(own.settings, self.services).test_client()
        self.numbers = iter(range(1, 10**6))

    def annotate(self) -> dict[str, object]:
        """Send one annotation; return the answer, which has to come in time."""
        number = next(self.numbers)
        event = annotation_event()
        event["annotation"] |= {"id": number, "task": number}
        event["task"] = {"id": number, "data": {"text": f"comment {number}"}}
        started = time.monotonic()
        answer = self.client.post("/webhook", json=event)
        assert time.monotonic() - started < LONGEST_ANSWER
        assert answer.status_code == 201, answer.json
        assert answer.json is not None
        return dict(answer.json)

    def lost(self, sent: int) -> int:
        """How many of the annotations so far are neither in Redis, each once, nor waiting."""
        store = ExampleStore(self.own.client)
        snapshot = store.snapshot(1, BEGINNING)
        expected = [LabelledComment(f"comment {number}", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)) for number in range(1, sent + 1)]
        found = store.comments(1, snapshot, sorted(snapshot.targets))
        assert self.own.client.xlen("toxicity:{1}:events") <= sent
        return sum(comment not in found for comment in expected)

    def recovered(self) -> float:
        """Wait until nothing waits any more; return after how many seconds."""
        started = time.monotonic()
        while not self.services.recording.spool.is_empty():
            assert time.monotonic() - started < 30, "the spool is not drained"
            time.sleep(0.02)
        return time.monotonic() - started


@pytest.fixture
def web(own_redis: OwnRedis) -> Iterator[Web]:
    web = Web(own_redis)
    web.services.recording.start()
    yield web
    web.services.recording.close()


def set_config(name: str, value: str) -> Callable[[OwnRedis], object]:
    return lambda own: own.client.config_set(name, value)


FAULTS: dict[str, tuple[Callable[[OwnRedis], object], Callable[[OwnRedis], object]]] = {
    "stopped": (lambda own: own.send(signal.SIGTERM), lambda own: own.start()),
    "killed": (lambda own: own.send(signal.SIGKILL), lambda own: own.start()),
    "hung": (lambda own: own.send(signal.SIGSTOP), lambda own: own.send(signal.SIGCONT)),
    "out of memory": (set_config("maxmemory", "1"), set_config("maxmemory", "0")),
    "read-only": (lambda own: own.client.replicaof("127.0.0.1", "1"), lambda own: own.client.replicaof("NO", "ONE")),
}


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_answered_while_redis_was_away_is_there_once_it_is_back(
    web: Web, fault: str, report_fault: FaultReport, caplog: pytest.LogCaptureFixture
) -> None:
    begin, end = FAULTS[fault]
    caplog.set_level(logging.INFO)
    times, sent = 3, 0
    healthy_after = 0.0
    for _ in range(times):
        assert web.annotate() == {"changed": 1}
        begin(web.own)
        assert [web.annotate() for _ in range(5)] == [{"spooled": True}] * 5
        assert web.client.get("/health").status_code == 200
        sent += 6
        end(web.own)
        healthy_after = max(healthy_after, web.recovered())
    assert "comment 1" not in caplog.text
    report_fault(f"Redis {fault} while annotations come in", times, web.lost(sent), healthy_after)


@pytest.mark.faults
def test_an_annotation_outlives_a_redis_that_is_killed_right_after_the_answer(web: Web, report_fault: FaultReport) -> None:
    times = 5
    for _ in range(times):
        assert web.annotate() == {"changed": 1}
        web.own.send(signal.SIGKILL)
        web.own.start()
    report_fault("Redis killed right after an annotation was answered", times, web.lost(times), 0.0)


@pytest.mark.faults
def test_deletions_and_training_requests_wait_in_their_place(web: Web) -> None:
    web.own.send(signal.SIGSTOP)
    web.annotate()
    web.annotate()
    for event in (
        {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}], "project": {"id": 1}},
        {"action": "START_TRAINING", "project": {"id": 1}},
    ):
        assert web.client.post("/webhook", json=event).json == {"spooled": True}
    assert web.client.post("/webhook", json={"action": "TASKS_CREATED", "project": {"id": 1}}).json == {"changed": 0}
    web.own.send(signal.SIGCONT)
    web.recovered()
    assert set(ExampleStore(web.own.client).snapshot(1, BEGINNING).targets) == {2}
    assert TrainingQueue(web.own.client, web.own.settings).queue.get_job_ids() == ["train-1-0"]


KILLED = """
import os, signal, sys
from pathlib import Path
from backend.spool import Spool
from tests.test_spool import changes
spool = Spool(Path(sys.argv[1]), print)
for number in range(1, 6):
    spool.add(changes(number))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.faults
def test_what_is_spooled_outlives_the_web_process(tmp_path: Path, recorded: list[Changes], report_fault: FaultReport) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "spool")], check=False)
    assert done.returncode == -signal.SIGKILL
    Spool(tmp_path / "spool", recorded.append).drain()
    report_fault("the web process killed while changes are spooled", 1, 5 - len(recorded), 0.0)
    assert recorded == [changes(number) for number in range(1, 6)]
