"""One training run at a time for a project, however many workers there are.

Not here: what keeps versions right where this lock fails (toxicity/versions.py: publish).
"""

import threading
from contextlib import suppress

import redis

LOCK_SECONDS = 20.0  # a killed run blocks the next one no longer than this


class ProjectLock:
    """Held while a project is trained, and kept alive by a thread: when the process dies, it is free again soon.

    It saves work that a rival run would throw away; what keeps versions right is publish().
    """

    def __init__(self, connection: redis.Redis, project: int) -> None:
        """Prepare the lock; entering waits for it."""
        self._project = project
        self._lock = connection.lock(f"toxicity:{{{project}}}:training", timeout=LOCK_SECONDS, thread_local=False)
        self._lost = False
        self._done = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keep-lock", daemon=True)

    def __enter__(self) -> "ProjectLock":
        if not self._lock.acquire(blocking_timeout=2 * LOCK_SECONDS):
            raise RuntimeError(f"Project {self._project} is being trained by another run; this one is tried again.")
        self._keeper.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._keeper.join()
        with suppress(redis.RedisError):  # it expires by itself
            self._lock.release()

    def require(self) -> None:
        """Raise RuntimeError where another run has taken over: its version counts, not this one's."""
        if self._lost:
            raise RuntimeError(f"Project {self._project} was taken over by another run; this one is given up.")

    def _keep(self) -> None:
        while not self._done.wait(LOCK_SECONDS / 4):
            try:
                self._lock.reacquire()
            except redis.exceptions.LockError:
                self._lost = True
                return
            except redis.RedisError:  # Redis is away: whether the lock is lost shows when it is back
                continue
