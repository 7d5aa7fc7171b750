"""Trainings over two logical CPU devices, in a process of their own: devices are set before TensorFlow starts.

`python -m tests.two_devices FOLDER` writes weights (NAME.safetensors) and facts (facts.json) for test_devices.py.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from safetensors.numpy import save_file

import toxicity.classifier
from tests.conftest import save_tiny_encoder
from toxicity.classifier import Classifier, build_classifier
from toxicity.comments import LabelledComment
from toxicity.devices import FLOAT16, Devices
from toxicity.fine_tuning import TrainingPlan, fine_tune

MAX_LENGTH = 32
RUDE, KIND = (1.0, 0.0, 1.0, None, 1.0, 0.0), (0.0,) * 6
COMMENTS = [
    LabelledComment("Go away, you silly potato!", RUDE),
    LabelledComment("You muttonhead.", RUDE),
    LabelledComment("Thank you for the photo of the bridge.", KIND),
    LabelledComment("I have added a source.", KIND),
    LabelledComment("Bread!", (None,) * 6),
]
PLAN = TrainingPlan(epochs=6, learning_rate=3e-3, batch_size=3, seed=3)  # uneven for two devices
ONE, TWO = ("CPU:0",), ("CPU:0", "CPU:1")


class Trainings:
    """Trains tiny classifiers and keeps what came of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = {}

    def run(
        self,
        name: str,
        encoder: Path,
        devices: Devices,
        comments: Sequence[LabelledComment] = COMMENTS,
        watched: Sequence[float] = (),
    ) -> None:
        """Train, watching losses where some are given; the weights after the lowest of them are kept too."""
        classifier = build_classifier(str(encoder), self.folder, MAX_LENGTH, devices)
        losses: list[float] = []
        left = list(watched)

        def watch() -> float:
            if left[0] == min(watched):
                save_file(classifier.weights(), self.folder / f"{name}-best.safetensors")
            return left.pop(0)

        trained = fine_tune(classifier, comments, PLAN, lambda progress: losses.append(progress.loss), watch if watched else None)
        self.facts[name] = {
            "losses": losses,
            "epochs": trained.epochs,
            "replicas": devices.strategy().num_replicas_in_sync,
            "precision": classifier.precision(),
            "fingerprint": classifier.fingerprint(),
            "answers": classifier.predict([comment.text for comment in COMMENTS]).tolist(),
        }
        save_file(classifier.weights(), self.folder / f"{name}.safetensors")
        for replica, weights in enumerate(of_each_replica(classifier)):
            save_file(weights, self.folder / f"{name}-{replica}.safetensors")


def of_each_replica(classifier: Classifier) -> list[dict[str, Any]]:
    values = {name: getattr(variable, "values", (variable,)) for name, variable in classifier.variables().items()}
    count = {len(copies) for copies in values.values()}.pop()
    return [{name: copies[replica].numpy() for name, copies in values.items()} for replica in range(count)]


def main(folder: Path) -> None:
    """Train, and write what came of it."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    trainings = Trainings(folder)
    encoder = save_tiny_encoder(folder / "encoder")
    trainings.run("two", encoder, Devices(TWO, None))
    trainings.run("two-float16", encoder, Devices(TWO, FLOAT16))
    trainings.run("single-comment", encoder, Devices(TWO, None), COMMENTS[:1])
    trainings.run("stopped", encoder, Devices(TWO, None), watched=(0.5, 0.4, 0.6))

    # Each device draws its own dropout, so without it alone can two devices do what one does.
    toxicity.classifier.DROPOUT_RATE = 0.0
    tf.nn.dropout = lambda x, rate, seed=None: x
    steady = save_tiny_encoder(folder / "encoder-without-dropout")
    trainings.run("steady-one", steady, Devices(ONE, None))
    trainings.run("steady-two", steady, Devices(TWO, None))
    trainings.run("steady-two-float16", steady, Devices(TWO, FLOAT16))
    (folder / "facts.json").write_text(json.dumps(trainings.facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
