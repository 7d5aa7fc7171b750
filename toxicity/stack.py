"""Everything on one machine: starts Redis, the worker and the backend, waits until they answer, and stops them together.

Not here: what they do. Their output goes to files in DATA_DIR/logs; the terminal gets what a person needs. Where a process
dies, the others are stopped: a half-running installation is worse than none.
"""

import base64
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

import psutil
import redis

from toxicity.redis_connection import redis_server_command, redis_url
from toxicity.settings import EMBEDDED, Settings

SAMPLE_COMMENT = "Only an idiot would write such rubbish. Go away!"
REDIS_WAIT = 20.0
ANSWER_WAIT = 10.0  # then the processes are looked at, and it is asked again
BACKEND_WAIT = 300.0  # the first start builds the encoder's SavedModel
STOP_WAIT = 10.0
LAST_LINES = 12
BAR_WIDTH = 24


class StackError(Exception):
    """The stack cannot start or go on; the message says which part, why, and what to do."""


@dataclass(frozen=True)
class Part:
    """One process of the stack and the file that its output goes to."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def require_alive(self) -> None:
        """Raise StackError with the end of its output if the process has ended."""
        code = self.process.poll()
        if code is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-LAST_LINES:])
            raise StackError(f"{self.name} ended with code {code}. The end of {self.log}:\n{tail}")


def run_stack(settings: Settings) -> int:
    """Run until Ctrl-C or SIGTERM (0) or until a part fails (1)."""
    for signum in (signal.SIGINT, signal.SIGTERM):  # a shell that starts this in the background has SIGINT ignored
        signal.signal(signum, _interrupt)
    parts: list[Part] = []
    try:
        with _data_dir_lock(settings) as lock:
            _require_free_port(settings)
            _require_encoder(settings)
            started = time.monotonic()
            for part in _start_parts(settings, lock):
                parts.append(part)
                if part.name == "redis":
                    _wait_for_redis(settings, parts)
            if not settings.redis_url:
                print("redis     embedded, its files in", settings.data_dir / "redis", flush=True)
            _write_pids(lock, parts)
            answer = _first_answer(settings, parts)
            print(f"ready     after {time.monotonic() - started:.0f} s, logs in {settings.data_dir / 'logs'}\n")
            print(prediction_table(SAMPLE_COMMENT, answer), "\n", flush=True)
            print(how_to_connect(settings), flush=True)
            while True:
                for part in parts:
                    part.require_alive()
                time.sleep(0.5)
    except StackError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nstopping", flush=True)
        return 0
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not leave processes behind
            signal.signal(signum, signal.SIG_IGN)
        _stop(parts)


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _start_parts(settings: Settings, lock: IO[str]) -> Iterator[Part]:
    """Start each part when the caller asks for it, Redis first."""
    if settings.redis_url:
        _require_redis(settings)
    else:
        try:
            yield _start("redis", redis_server_command(settings.data_dir), settings, lock)
        except (FileNotFoundError, PermissionError) as error:
            raise StackError(str(error)) from error
    for name in ("worker", "backend"):
        yield _start(name, [sys.executable, "-m", name], settings, lock)


def _start(name: str, command: list[str], settings: Settings, lock: IO[str]) -> Part:
    log = settings.data_dir / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.before"))  # what went wrong last time is still to be read
    print(f"starting  {name}", flush=True)
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this process only, which then stops the parts in the right order. The lock's
        # descriptor is inherited, so that the lock holds as long as any of them lives, even if this process is killed.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )
    return Part(name, process, log)


def _stop(parts: list[Part]) -> None:
    """Stop the parts in reverse order, Redis last; whoever does not end in time is killed, with all that it started."""
    for part in reversed(parts):
        if part.process.poll() is None:
            part.process.send_signal(signal.SIGTERM)
            try:
                part.process.wait(STOP_WAIT)
            except subprocess.TimeoutExpired:
                # The worker waits for its training run, which may take an hour; it is run again at the next start.
                print(f"{part.name} did not end within {STOP_WAIT:.0f} s and is killed", flush=True)
        for pid in _session(part.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        part.process.wait()


def _session(leader: int) -> list[int]:
    """Return the processes of a part's session: what it started, even where it died before them."""
    pids = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == leader:
                pids.append(pid)
    return pids


@contextmanager
def _data_dir_lock(settings: Settings) -> Iterator[IO[str]]:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        (settings.data_dir / "up.lock").touch()
    except OSError as error:
        raise StackError(
            f"DATA_DIR={settings.data_dir} cannot be written ({error.strerror}): set it to a folder of yours."
        ) from error
    with (settings.data_dir / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StackError(
                f"DATA_DIR={settings.data_dir} is in use by processes {lock.read().strip() or 'that are just starting'}. "
                "Stop them (Ctrl-C where they were started, or kill), or set DATA_DIR to another folder."
            ) from None
        yield lock


def _write_pids(lock: IO[str], parts: list[Part]) -> None:
    lock.truncate(0)
    lock.write(", ".join(f"{part.name} {part.process.pid}" for part in parts))
    lock.flush()


def _require_free_port(settings: Settings) -> None:
    host = settings.listening_host()
    if narrowed := settings.narrowed_host():
        print(narrowed, flush=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, settings.port))
        except OSError as error:
            way_out = (
                "Another program has the port: set PORT to another, e.g. `PORT=9091 make up`."
                if error.errno == errno.EADDRINUSE
                else "Set HOST to an address of this machine and PORT to one that you may use."
            )
            raise StackError(f"The backend cannot listen on {host}:{settings.port} ({error.strerror}). {way_out}") from error


def _require_encoder(settings: Settings) -> None:
    if (
        settings.encoder != EMBEDDED
        and "://" not in settings.encoder
        and not (Path(settings.encoder) / "saved_model.pb").exists()
    ):
        raise StackError(
            f"ENCODER={settings.encoder} is no folder with a saved_model.pb: give '{EMBEDDED}', a SavedModel's folder or a URL."
        )


def _require_redis(settings: Settings) -> None:
    try:
        redis.Redis.from_url(settings.redis_url, socket_timeout=5, socket_connect_timeout=5).ping()
    except ValueError as error:
        raise StackError(f"REDIS_URL is no address that can be read ({error}); e.g. redis://127.0.0.1:6379/0.") from error
    except redis.RedisError as error:
        raise StackError(
            f"The Redis of REDIS_URL does not answer ({type(error).__name__}). "
            "Start it, correct REDIS_URL, or unset it to use the embedded one."
        ) from error


def _wait_for_redis(settings: Settings, parts: list[Part]) -> None:
    client = redis.Redis.from_url(redis_url(settings), socket_timeout=1)
    deadline = time.monotonic() + REDIS_WAIT
    while time.monotonic() < deadline:
        parts[-1].require_alive()
        try:
            client.ping()
            return
        except redis.RedisError:  # not listening yet, or still reading its append-only file
            time.sleep(0.05)
    raise StackError(f"redis did not answer within {REDIS_WAIT:.0f} s; see {parts[-1].log}.")


def _first_answer(settings: Settings, parts: list[Part]) -> dict[str, Any]:
    """Ask for one prediction until there is one, as Label Studio would."""
    task = {"tasks": [{"id": 0, "data": {"text": SAMPLE_COMMENT}}]}
    deadline = time.monotonic() + BACKEND_WAIT
    while time.monotonic() < deadline:
        for part in parts:
            part.require_alive()
        request = urllib.request.Request(f"{_address(settings)}/predict", json.dumps(task).encode(), _headers(settings))
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_WAIT) as response:
                result: dict[str, Any] = json.load(response)["results"][0]
                return result
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE:  # still loading, and all slots wait for that
                time.sleep(1)
                continue
            raise StackError(f"backend answered /predict with {error.code}; see {parts[-1].log}.") from error
        except OSError:  # not listening yet, or still loading
            time.sleep(0.2)
    raise StackError(f"backend did not answer within {BACKEND_WAIT:.0f} s; see {parts[-1].log}.")


def _headers(settings: Settings) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if settings.has_credentials():
        pair = f"{settings.basic_auth_user}:{settings.basic_auth_pass}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    return headers


def _address(settings: Settings) -> str:
    host = settings.listening_host()
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{settings.port}" if ":" in host and not host.startswith("[") else f"http://{host}:{settings.port}"


def prediction_table(comment: str, answer: dict[str, Any]) -> str:
    """Return one prediction as a small table for the terminal."""
    lines = [f"  {comment!r}", f"  model version {answer['model_version']}", ""]
    for label, probability in answer["probabilities"].items():
        lines.append(f"  {label:14} {probability:6.3f}  {'█' * round(probability * BAR_WIDTH)}".rstrip())
    return "\n".join(lines)


def how_to_connect(settings: Settings) -> str:
    """Return what a person does next in Label Studio."""
    return f"""Connect Label Studio: in the project's Settings > Model > Connect Model, give the backend URL {_address(settings)}.
Label Studio 1.23.1 and newer refuse local addresses. Start it with these two variables set, or it will
show the backend as connected and never send an annotation:
  SSRF_PROTECTION_ENABLED=false ML_BLOCK_LOCAL_IP=false label-studio start
The labelling config to use, and everything else, is in README.md. Ctrl-C stops everything."""
