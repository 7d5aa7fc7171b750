"""`make up`'s command: what it says when it works, when a port is taken, when a process dies; and that nothing is left behind."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from tests.stack_process import StackProcess
from toxicity.labels import LABELS
from toxicity.redis_connection import socket_path

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stack") / "data"


@pytest.fixture
def stack(data_dir: Path) -> Iterator[StackProcess]:
    stack = StackProcess(data_dir)
    yield stack
    stack.stop()


def pids(stack: StackProcess) -> dict[str, int]:
    return {name: int(pid) for name, pid in re.findall(r"(\w+) (\d+)", (stack.data_dir / "up.lock").read_text())}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_shows_six_probabilities_and_ends_cleanly_and_finds_its_data_again(stack: StackProcess, data_dir: Path) -> None:
    stack.wait_until_ready()
    shown = {label: float(value) for label, value in re.findall(r"^  (\w+) +(\d\.\d+)", stack.output, re.MULTILINE)}
    assert tuple(shown) == LABELS
    assert shown["toxic"] > 0.8 > shown["threat"]
    assert f"http://127.0.0.1:{stack.port}" in stack.output
    assert "SSRF_PROTECTION_ENABLED=false" in stack.output

    started = pids(stack)
    assert set(started) == {"redis", "worker", "backend"}
    client = redis.Redis(unix_socket_path=str(socket_path(data_dir)))
    client.set("kept", "yes")
    client.close()
    assert stack.stop(signal.SIGINT) == 0
    assert not any(alive(pid) for pid in started.values())

    again = StackProcess(data_dir)
    try:
        again.wait_until_ready()
        client = redis.Redis(unix_socket_path=str(socket_path(data_dir)))
        assert client.get("kept") == b"yes"
        client.close()
    finally:
        assert again.stop(signal.SIGTERM) == 0


def test_a_second_one_on_the_same_folder_says_who_has_it(stack: StackProcess, data_dir: Path) -> None:
    stack.wait_until_ready()
    second = StackProcess(data_dir)
    try:
        assert second.process.wait(30) == 1
        assert f"DATA_DIR={data_dir} is in use by processes redis {pids(stack)['redis']}" in second.output
    finally:
        second.stop()
    assert httpx.get(f"{stack.url}/health").json()["status"] == "UP"


@pytest.mark.parametrize("victim", ["worker", "backend", "redis"])
def test_when_a_process_dies_it_says_which_and_stops_the_rest(stack: StackProcess, victim: str) -> None:
    stack.wait_until_ready()
    started = pids(stack)
    os.kill(started[victim], signal.SIGKILL)
    assert stack.process.wait(60) == 1
    assert f"{victim} ended with code -9. The end of" in stack.output
    assert not any(alive(pid) for pid in started.values())


def test_a_taken_port_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = StackProcess(tmp_path / "data", PORT=str(port))
        assert stack.process.wait(30) == 1
    assert f"cannot listen on 127.0.0.1:{port} (Address already in use)" in stack.output
    assert "starting" not in stack.output


def test_a_redis_url_that_does_not_answer_is_named(tmp_path: Path) -> None:
    stack = StackProcess(tmp_path / "data", REDIS_URL=f"unix://{tmp_path}/nobody.sock")
    assert stack.process.wait(30) == 1
    assert "The Redis of REDIS_URL does not answer" in stack.output


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    stack = StackProcess(tmp_path / "data", TRAIN_AFTER="soon")
    assert stack.process.wait(30) == 1
    assert "TRAIN_AFTER='soon' is not a whole number" in stack.output


def test_health_and_setup_answer_while_the_model_loads(data_dir: Path) -> None:
    stack = StackProcess(data_dir)
    try:
        stack.wait_for(lambda: listens(stack.port), 60)
        answers = 0
        while "Ctrl-C stops everything." not in stack.output and answers < 100:
            started = time.monotonic()
            assert httpx.get(f"{stack.url}/health", timeout=3).json()["status"] == "UP"
            assert stack.post("/setup", {"project": "1.1795389861", "schema": ""}) == {"model_version": "v0"}
            assert time.monotonic() - started < 4, "Label Studio gives /health 1 s and /setup 3 s"
            answers += 1
            time.sleep(0.1)
        assert answers >= 3
        stack.wait_until_ready()
    finally:
        stack.stop()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
