"""Keeps what annotators decided: in Redis, or where that cannot take it, in the spool.

Not here: what is kept in Redis (toxicity/examples.py, toxicity/training_queue.py) and on the disk (spool.py). An answered
event is one that is safe in one of the two.
"""

import logging
from typing import Any

import redis

from backend.spool import Spool
from toxicity.examples import ExampleStore
from toxicity.label_studio import Changes
from toxicity.redis_connection import connect_for_draining, connect_tightly
from toxicity.settings import SPOOL, Settings
from toxicity.training_queue import TrainingQueue

logger = logging.getLogger(__name__)


class Recording:
    """Records changes. Safe to use from several threads."""

    def __init__(self, settings: Settings) -> None:
        """Prepare clients and the spool; neither Redis nor the disk is touched before start() or the first record()."""
        self._tight = _InRedis(connect_tightly(settings), settings)
        self.spool = Spool(settings.data_dir / SPOOL, _InRedis(connect_for_draining(settings), settings).record)

    def start(self) -> None:
        """Begin to record what the spool holds."""
        self.spool.start()

    def close(self) -> None:
        """Stop draining the spool."""
        self.spool.close()

    def record(self, changes: Changes) -> dict[str, Any]:
        """Keep changes; return what the event is answered: how many examples changed, or that they are spooled.

        Raises:
            SpoolError: neither Redis nor the disk could take them.
        """
        if changes == Changes(changes.project):
            return {"changed": 0}
        if self.spool.is_empty():
            try:
                return self._tight.record(changes)
            except redis.RedisError as error:
                logger.warning(
                    "project %s: Redis cannot take an event (%s): it is spooled", changes.project, type(error).__name__
                )
        self.spool.add(changes)
        return {"spooled": True}


class _InRedis:
    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        self._examples = ExampleStore(connection)
        self._training = TrainingQueue(connection, settings)

    def record(self, changes: Changes) -> dict[str, Any]:
        answer: dict[str, Any] = {"changed": self._examples.apply(changes)}
        if changes.start_training and changes.project is not None:
            self._training.request_take_over(changes.project)
            answer["job"] = self._training.request(changes.project)
        logger.info("project %s: %d examples changed", changes.project, answer["changed"])
        return answer
