"""Fixtures: a data folder and a real Redis of each test's own, and a classifier that needs no TensorFlow."""

import abc
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import hypothesis
import numpy as np
import numpy.typing as npt
import pytest
import redis

from toxicity.calibration import IDENTITY
from toxicity.labels import DEFAULT_THRESHOLDS, LABELS
from toxicity.manifest import Manifest, Verdict
from toxicity.redis_connection import redis_server_command, socket_path
from toxicity.settings import Settings
from toxicity.versions import CARD_FILE, CARD_JSON_FILE, LoadedVersion, ProjectVersions

if TYPE_CHECKING:
    from toxicity.classifier import Classifier

# The same cases in every run: a test that fails at CI must fail at the desk.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

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


class OwnRedis:
    """A real Redis of a test's own, to be stopped, frozen and killed."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.settings = Settings(data_dir=data_dir)
        self.client = redis.Redis(unix_socket_path=str(socket_path(data_dir)))
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._server = subprocess.Popen(redis_server_command(self.data_dir), stdout=subprocess.DEVNULL)
        for _ in range(400):
            try:
                self.client.ping()
                return
            except redis.RedisError:
                time.sleep(0.02)
        raise AssertionError("Redis did not start")

    def send(self, signum: signal.Signals) -> None:
        """SIGSTOP freezes it, SIGCONT lets it go on; after SIGKILL or SIGTERM it is gone when this returns."""
        assert self._server is not None
        self._server.send_signal(signum)
        if signum in (signal.SIGKILL, signal.SIGTERM):
            self._server.wait()
            self._server = None

    def close(self) -> None:
        self.client.close()
        if self._server is not None:
            self.send(signal.SIGKILL)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    own = OwnRedis(tmp_path / "own")
    own.start()
    yield own
    own.close()


FAULTS = pytest.StashKey[list[tuple[str, int, int, float]]]()


class FaultReport(Protocol):
    """What a test of a fault reports: how often it happened, what was lost, and how long it took until all was well (s)."""

    def __call__(self, fault: str, times: int, lost: int, healthy_after: float) -> None: ...


@pytest.fixture
def report_fault(request: pytest.FixtureRequest) -> FaultReport:
    """Add a line to the table that ends a run with faults; something lost is a failure."""

    def report(fault: str, times: int, lost: int, healthy_after: float) -> None:
        request.config.stash.setdefault(FAULTS, []).append((fault, times, lost, healthy_after))
        assert lost == 0, f"{fault}: {lost} lost"

    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(FAULTS, [])
    if lines:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'fault':76} {'times':>6} {'lost':>5} {'healthy after':>14}")
        for fault, times, lost, healthy_after in lines:
            terminalreporter.write_line(f"{fault:76} {times:6} {lost:5} {healthy_after:12.1f} s")


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


class PredictorStandIn(abc.ABC):
    """Stands in for a network: its subclasses say what is answered to texts."""

    @abc.abstractmethod
    def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]: ...

    def encode(self, comment: str) -> Sequence[int]:
        return [ord(character) for character in comment]

    def predict_encoded(self, encoded: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        return self.predict(["".join(map(chr, ids)) for ids in encoded])


class VersionEncodingPredictor(PredictorStandIn):
    """Answers every comment with its version's number in all six columns, so that an answer shows who gave it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.full((len(comments), len(LABELS)), self.number / 100, np.float32)


def load_without_tensorflow(settings: Settings, versions: ProjectVersions, number: int) -> LoadedVersion:
    """Stands in for backend.live_model.load: checks the files like it, but builds no network."""
    watermark, thresholds, calibration = "0-0", DEFAULT_THRESHOLDS, IDENTITY
    if number != 0:
        manifest, _ = versions.load(number)
        watermark, thresholds, calibration = manifest.watermark, manifest.thresholds, manifest.calibration
    predictor = VersionEncodingPredictor(number)
    return LoadedVersion(versions.name(number), number, thresholds, watermark, predictor, calibration)


ACCEPTED = Verdict(True, ("not worse than its parent",), "hold-out", 40)
REJECTED = Verdict(False, ("its log loss is 0.2000, that of its parent 0.1000 (margin 0.0100)",), "hold-out", 40)
CARDS = {CARD_JSON_FILE: "{}", CARD_FILE: "# card"}


def manifest_of(
    number: int, parent: int = 0, watermark: str = "0-0", fingerprint: str = "test", verdict: Verdict = ACCEPTED, best: int = 0
) -> Manifest:
    return Manifest(
        name=f"v{number}",
        number=number,
        parent=parent,
        parent_name=f"v{parent}",
        best=best,
        watermark=watermark,
        created_at="2026-01-01T00:00:00+00:00",
        encoder="embedded",
        fingerprint=fingerprint,
        labels=LABELS,
        thresholds=DEFAULT_THRESHOLDS,
        calibration=IDENTITY,
        golden_outputs=((0.5,) * 6,),
        measures={"mean_roc_auc": 0.9, "log_loss": 0.1, "training_loss": 0.1},
        verdict=verdict,
        training={
            "source": "new or changed examples of the project",
            "examples": 1,
            "new_examples": 1,
            "replayed": 0,
            "held_out": 40,
            "from_the_beginning": True,
            "epochs": 1,
            "epochs_planned": 1,
            "learning_rate": 1e-5,
            "batch_size": 16,
            "seed": 0,
            "max_length": 32,
            "precision": "float32",
            "packages": {"numpy": "1"},
        },
    )


def publish(
    versions: ProjectVersions, number: int, watermark: str = "0-0", verdict: Verdict = ACCEPTED, best: int = 0
) -> Manifest:
    """Publish a version whose weights are a single number."""
    weights = {"weight": np.full(3, number, np.float32)}
    manifest = manifest_of(number, number - 1, watermark, verdict=verdict, best=best)
    named = replace(manifest, name=versions.name(number), parent_name=versions.name(number - 1))
    return versions.publish(named, weights, CARDS)


@pytest.fixture(scope="session")
def classifier(shared_data_dir: Path) -> "Classifier":
    """The embedded encoder with a fresh head, shared by every test: nobody may change its weights."""
    from toxicity.classifier import build_classifier

    return build_classifier("embedded", shared_data_dir, 32)


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.!"
TINY_VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + letter for letter in LETTERS))


def save_tiny_encoder(
    folder: Path,
    dictionary: bool = False,
    vocabulary: Sequence[str] = TINY_VOCABULARY,
    lower_case: bool = True,
    sentence_piece: bytes | None = None,
    **assets: Any,
) -> Path:
    """Save a BERT-shaped network of a few numbers in TensorFlow Hub's older form (a list in) or its newer one (a dictionary).

    It has a vocab_file, or an sp_model_file where a SentencePiece model is given; `assets` replaces both.
    """
    import tensorflow as tf

    random = np.random.default_rng(0)
    shapes = {"embeddings": (len(TINY_VOCABULARY), 8), "layer/kernel": (8, 8), "layer/bias": (8,), "pooler/kernel": (8, 8)}
    weights = {name: tf.Variable(random.normal(0, 0.5, shape), name=name, dtype=tf.float32) for name, shape in shapes.items()}
    names = ("input_word_ids", "input_mask", "input_type_ids")

    def call(inputs: Any, training: bool = False) -> Any:
        word_ids = inputs["input_word_ids"] if dictionary else inputs[0]
        embedded = tf.gather(weights["embeddings"], word_ids)
        embedded = tf.nn.dropout(embedded, 0.1, seed=1) if training else embedded
        sequence_output = tf.tanh(embedded @ weights["layer/kernel"] + weights["layer/bias"])
        pooled_output = tf.tanh(sequence_output[:, 0] @ weights["pooler/kernel"])
        if dictionary:
            return {"pooled_output": pooled_output, "sequence_output": sequence_output}
        return pooled_output, sequence_output

    module = tf.train.Checkpoint()
    module.variables = module.trainable_variables = list(weights.values())
    module.regularization_losses = []
    module.do_lower_case = tf.Variable(lower_case, trainable=False)
    folder.mkdir(parents=True)
    vocab_file, piece_file = folder / "vocab.txt", folder / "30k-clean.model"
    vocab_file.write_text("\n".join(vocabulary), encoding="utf-8")
    piece_file.write_bytes(sentence_piece or b"")
    found = {"vocab_file": vocab_file} if sentence_piece is None else {"sp_model_file": piece_file}
    for name, file in (assets or found).items():
        setattr(module, name, tf.saved_model.Asset(str(file)))
    specifications = {name: tf.TensorSpec((None, None), tf.int32, name) for name in names}
    module.__call__ = tf.function(call)
    for training in (True, False):
        module.__call__.get_concrete_function(specifications if dictionary else list(specifications.values()), training=training)
    tf.saved_model.save(module, str(folder / "saved"))
    return folder / "saved"


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handle for tests in which what the encoder knows does not matter: it builds and trains in no time."""
    return save_tiny_encoder(tmp_path_factory.mktemp("tiny") / "bert")
