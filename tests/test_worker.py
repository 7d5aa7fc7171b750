"""The worker as a process of its own on a real Redis: a killed run is run again, a failing one leaves everything as it was."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import redis
from rq.job import JobStatus

from toxicity.encoder import embedded_saved_model
from toxicity.examples import ExampleStore
from toxicity.label_studio import Annotation, Changes
from toxicity.settings import Settings
from toxicity.training_queue import TrainingQueue
from toxicity.versions import ProjectVersions
from worker.__main__ import NICENESS

pytestmark = pytest.mark.processes
PROJECT = 7


@pytest.fixture
def worker_settings(redis_settings: Settings, shared_data_dir: Path, tmp_path: Path) -> Settings:
    encoder = embedded_saved_model(shared_data_dir)
    settings = replace(redis_settings, train_after=4, train_wait=2, train_epochs=2, hold_out=0.0)
    shutil.copytree(encoder, settings.data_dir / "encoders" / encoder.name)
    return settings


@pytest.fixture
def start_worker(worker_settings: Settings, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    started: list[subprocess.Popen[bytes]] = []
    log = (tmp_path / "worker.log").open("wb")

    def start(**environment: str) -> "subprocess.Popen[bytes]":
        own = {
            "DATA_DIR": str(worker_settings.data_dir),
            "REDIS_URL": worker_settings.redis_url,
            "TRAIN_AFTER": str(worker_settings.train_after),
            "TRAIN_WAIT": str(worker_settings.train_wait),
            "TRAIN_EPOCHS": str(worker_settings.train_epochs),
            "HOLD_OUT": str(worker_settings.hold_out),
        }
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker"], env={**os.environ, **own, **environment}, stdout=log, stderr=subprocess.STDOUT
        )
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()
        worker.wait()
    log.close()


def record(store: ExampleStore, first: int, count: int) -> None:
    annotations = tuple(
        Annotation(k, k, "2026-01-01T00:00:00Z", f"Comment number {k} is plainly rude.", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
        for k in range(first, first + count)
    )
    store.apply(Changes(PROJECT, annotations=annotations))


def wait_for(condition: Callable[[], object], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-6000:]
        time.sleep(0.1)


def test_a_killed_run_is_run_again_and_progress_stands_in_the_jobs_meta(
    connection: redis.Redis, worker_settings: Settings, start_worker: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    store, queue = ExampleStore(connection), TrainingQueue(connection, worker_settings)
    versions = ProjectVersions(worker_settings.models_dir(), PROJECT)
    log = tmp_path / "worker.log"
    record(store, 1, 200)
    start_worker()

    def stage() -> object:
        job = queue.current_run(PROJECT)
        return job.get_meta(refresh=True).get("progress", {}).get("stage") if job else None

    wait_for(lambda: stage() == "training", 90, log)
    job = queue.current_run(PROJECT)
    assert job is not None
    progress = job.get_meta(refresh=True)["progress"]
    assert progress["steps"] == 34  # 200 examples and 64 anchors in batches of 16, twice
    assert 1 <= progress["step"] <= 34
    for horse in horses():
        assert psutil.Process(horse).nice() == NICENESS  # predictions go first
        os.kill(horse, signal.SIGKILL)
    assert versions.numbers() == []
    wait_for(lambda: versions.current() == 1, 120, log)
    assert len(store.changed_since(PROJECT, "0-0")) == 200
    assert store.changed_since(PROJECT, versions.manifest(1).watermark) == set()
    assert "Comment number" not in log.read_text()


def horses() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "worker.main_work_horse"], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in found.split()]


def test_a_run_that_fails_leaves_version_and_examples_as_they_were_and_is_tried_again(
    connection: redis.Redis, worker_settings: Settings, start_worker: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    store, queue = ExampleStore(connection), TrainingQueue(connection, worker_settings)
    versions = ProjectVersions(worker_settings.models_dir(), PROJECT)
    log = tmp_path / "worker.log"
    record(store, 1, 4)
    broken = start_worker(ENCODER=str(tmp_path / "no-such-encoder"))

    def failed() -> bool:
        job = queue.current_run(PROJECT)
        return job is not None and job.get_status() == JobStatus.FAILED

    wait_for(failed, 120, log)
    assert versions.current() == 0
    assert versions.numbers() == []
    assert store.changed_since(PROJECT, "0-0") == {1, 2, 3, 4}
    assert "no-such-encoder" in log.read_text()
    broken.terminate()
    broken.wait(30)

    start_worker()
    wait_for(lambda: versions.current() == 1, 120, log)
