"""The processes that are compared: our backend (with Redis and a worker where asked for), and a peer with the same routes.

Not here: what is asked of them (load.py), and the table (report.py).
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis

from benchmarks.load import ask, task
from toxicity.bert import embedded_model_dir
from toxicity.redis_connection import redis_server_command, socket_path

START_SECONDS = 180.0


@dataclass(frozen=True)
class Server:
    """A process that answers /predict: its port, and the process that computes."""

    port: int
    process: "subprocess.Popen[bytes]"

    def resident_megabytes(self) -> float:
        """Return the resident memory of the process and its children."""
        parent = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (parent, *parent.children(recursive=True))) / 1e6


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process with its output in a file, and stop it at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def redis_of(folder: Path) -> Iterator[str]:
    """Run a Redis of our own; give its URL."""
    with running(redis_server_command(folder), folder / "redis.log", {}) as process:
        connection = redis.Redis(unix_socket_path=str(socket_path(folder)))
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                connection.ping()
                break
            except redis.RedisError:
                time.sleep(0.05)
        else:
            raise RuntimeError(f"Redis did not answer; see {folder / 'redis.log'}.")
        yield f"unix://{socket_path(folder)}"


@contextmanager
def ours(folder: Path, redis_url: str, environment: Mapping[str, str]) -> Iterator[Server]:
    """Run our backend as README says, with a cache of one prediction: what is measured is computing."""
    port = free_port()
    given = {"PORT": str(port), "DATA_DIR": str(folder), "REDIS_URL": redis_url, "CACHED_PREDICTIONS": "1", **environment}
    with running([sys.executable, "-m", "backend"], folder / "backend.log", given) as process:
        yield _answering(Server(port, process), folder / "backend.log")


@contextmanager
def everything(folder: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Run what `make up` runs: Redis, worker and backend."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    given = {"PORT": str(port), "DATA_DIR": str(folder), **environment}
    with running([sys.executable, "-m", "toxicity", "up"], folder / "up.log", given) as process:
        yield _answering(Server(port, process), folder / "up.log")


@contextmanager
def worker(folder: Path, redis_url: str, environment: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run our worker."""
    given = {"DATA_DIR": str(folder), "REDIS_URL": redis_url, **environment}
    with running([sys.executable, "-m", "worker"], folder / "worker.log", given) as process:
        yield process


@contextmanager
def peer(folder: Path, python: Path, peers: Path) -> Iterator[Server]:
    """Run the peer's backend over the same encoder, in its own environment."""
    port = free_port()
    command = [str(python), str(peers / "hf_backend.py"), "--encoder", str(embedded_model_dir()), "--port", str(port)]
    with running(command, folder / "peer.log", {}) as process:
        yield _answering(Server(port, process), folder / "peer.log")


def _answering(server: Server, log: Path) -> Server:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            ask(server.port, [task("Is anybody there?")])
        except OSError:
            time.sleep(0.1)
        else:
            return server
    raise RuntimeError(f"A server did not answer; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")
