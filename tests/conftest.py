"""Fixtures: a data folder and a real Redis of each test's own, and a classifier that needs no TensorFlow."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import redis

from toxicity.labels import DEFAULT_THRESHOLDS, LABELS
from toxicity.redis_connection import redis_server_command, socket_path
from toxicity.settings import Settings
from toxicity.versions import LoadedVersion, Manifest, ProjectVersions

STAGES = ("tensorflow", "processes")  # the order in which tests run: quick ones first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: max([0, *(1 + STAGES.index(mark.name) for mark in item.iter_markers() if mark.name in STAGES)]))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture(scope="session")
def shared_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for what takes long to make and never changes: the embedded encoder's SavedModel."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def redis_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data folder of a real Redis that runs as long as the tests do."""
    data_dir = tmp_path_factory.mktemp("redis")
    log = (data_dir / "redis.log").open("wb")
    server = subprocess.Popen(redis_server_command(data_dir), stdout=log, stderr=subprocess.STDOUT)
    client = redis.Redis(unix_socket_path=str(socket_path(data_dir)))
    for _ in range(200):
        try:
            client.ping()
            break
        except redis.RedisError:
            assert server.poll() is None, (data_dir / "redis.log").read_text()
            time.sleep(0.05)
    client.close()
    yield data_dir
    server.terminate()
    server.wait()
    log.close()


@pytest.fixture
def redis_settings(settings: Settings, redis_data_dir: Path) -> Settings:
    """Settings whose Redis is the real one of the tests, emptied before and after each."""
    return replace(settings, redis_url=f"unix://{socket_path(redis_data_dir)}")


@pytest.fixture
def connection(redis_settings: Settings) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_settings.redis_url)
    client.flushall()
    yield client
    client.flushall()
    client.close()


class VersionEncodingPredictor:
    """Answers every comment with its version's number in all six columns, so that an answer shows who gave it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.full((len(comments), len(LABELS)), self.number / 100, np.float32)


def load_without_tensorflow(settings: Settings, versions: ProjectVersions, number: int) -> LoadedVersion:
    """Stands in for backend.live_model.load: checks the files like it, but builds no network."""
    watermark = "0-0"
    if number != 0:
        manifest, _ = versions.load(number)
        watermark = manifest.watermark
    return LoadedVersion(number, DEFAULT_THRESHOLDS, watermark, VersionEncodingPredictor(number))


def manifest_of(number: int, parent: int = 0, watermark: str = "0-0", fingerprint: str = "test") -> Manifest:
    return Manifest(
        number=number,
        parent=parent,
        watermark=watermark,
        created_at="2026-01-01T00:00:00+00:00",
        fingerprint=fingerprint,
        labels=LABELS,
        thresholds=DEFAULT_THRESHOLDS,
        golden_outputs=((0.5,) * 6,),
        measures={"training_loss": 0.1},
        training={"examples": 1, "new_examples": 1, "epochs": 1, "learning_rate": 1e-5, "batch_size": 16, "seed": 0},
    )


def publish(versions: ProjectVersions, number: int, watermark: str = "0-0") -> Manifest:
    """Publish a version whose weights are a single number."""
    weights = {"weight": np.full(3, number, np.float32)}
    return versions.publish(manifest_of(number, number - 1, watermark), weights, "# card")
