"""The starter: what every project's first version is, so that a fresh install does not answer with noise.

Not here: how it is made (starter_making.py), and versions that a project learned (versions.py). It ships with the code as one
small file: the head and all biases and norms in full, and of each weight matrix only the largest singular directions of its
difference to the embedded encoder. No text of the corpus is in it.
"""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import safe_open

from toxicity.bert import embedded_weights_digest
from toxicity.calibration import Calibration, Decision
from toxicity.fingerprint import HEAD, Weights
from toxicity.predicting import FloatArray

LEFT, RIGHT = ":left", ":right"  # what the names of a matrix' factors end with


class Startable(Protocol):
    """A network over the embedded encoder that was freshly built: to be trained (classifier.py) or to serve (serving.py)."""

    def weights(self) -> dict[str, FloatArray]:
        """Return the pretrained weights."""

    def set_weights(self, weights: Weights) -> None:
        """Take over others."""


def starter_file() -> Path:
    """Return the file that ships with the code."""
    return Path(str(resources.files("toxicity") / "starter.safetensors"))


def apply_starter(classifier: Startable, file: Path) -> Decision:
    """Set a classifier over the embedded encoder, freshly built, to the starter's weights; return its decision.

    Raises:
        ValueError: the starter is a difference to other encoder weights than the installed ones.
    """
    with safe_open(file, "np") as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
    installed = embedded_weights_digest()
    if metadata.get("encoder_sha256") != installed:
        raise ValueError(
            f"The starter {file} belongs to encoder weights {metadata.get('encoder_sha256')}, but the installed ones are "
            f"{installed}. Install the versions of requirements.txt, or make a new starter with `make starter`."
        )
    classifier.set_weights(expanded(classifier.weights(), tensors))
    calibration = Calibration(*(tuple(json.loads(metadata[field])) for field in ("slopes", "offsets")))
    return Decision(calibration, tuple(json.loads(metadata["thresholds"])))


def expanded(before: Weights, kept: Mapping[str, Any]) -> dict[str, FloatArray]:
    """Return the weights that a starter's tensors stand for, given the encoder's pretrained ones."""
    after = dict(before)
    for name, value in before.items():
        if name.startswith(HEAD):
            after[name] = kept[name].astype(np.float32)
        elif name in kept:
            after[name] = value + kept[name].astype(np.float32)
        elif name + LEFT in kept:
            after[name] = value + kept[name + LEFT].astype(np.float32) @ kept[name + RIGHT].astype(np.float32)
    return after
