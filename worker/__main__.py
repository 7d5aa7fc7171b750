"""Starts the training process: the sweeper, and an RQ worker that runs one training run at a time.

Not here: the run (training.py). SpawnWorker, because TensorFlow must not be used before a fork and gives GPU memory back only
when its process ends: docs/decisions/0006.
"""

import logging
import os
import sys

from rq.serializers import JSONSerializer
from rq.worker import SpawnWorker

from toxicity.redis_connection import connect_patiently
from toxicity.settings import LOG_FORMAT, settings_from_environment
from toxicity.training_queue import QUEUE, TrainingJob
from worker.sweeper import Sweeper

# Short, so that a job whose worker was killed is run again within a minute; RQ's defaults take up to a quarter of an hour.
WORKER_SECONDS = 30
MONITORING_SECONDS = 10
MAINTENANCE_SECONDS = 15
NICENESS = 15


def main() -> None:
    """Work until a signal ends it: the first lets the run under way finish, the second ends it too."""
    try:
        settings = settings_from_environment()
    except ValueError as error:
        sys.exit(f"worker: {error}")
    logging.basicConfig(level=settings.log_level, format=LOG_FORMAT)
    os.nice(NICENESS)  # training takes what predictions leave: they share the processors of a small machine
    sweeper = Sweeper(connect_patiently(settings), settings)
    worker = SpawnWorker(
        [QUEUE],
        connection=connect_patiently(settings),
        serializer=JSONSerializer,
        job_class=TrainingJob,
        worker_ttl=WORKER_SECONDS,
        job_monitoring_interval=MONITORING_SECONDS,
        maintenance_interval=MAINTENANCE_SECONDS,
        log_job_description=False,
    )
    sweeper.start()
    try:
        worker.work(logging_level="WARNING")  # its INFO is a line every few seconds
    finally:
        sweeper.stop()


if __name__ == "__main__":
    main()
