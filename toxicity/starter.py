"""The starter: what every project's first version is, so that a fresh install does not answer with noise.

Not here: versions that a project learned by itself (versions.py). The starter ships with the code as one small file: the
head and all biases and norms in full, and of each weight matrix only the largest singular directions of its difference
to the embedded encoder. No text of the corpus is in it.
"""

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from toxicity.classifier import HEAD, Classifier, FloatArray, Weights
from toxicity.corpus import read_corpus
from toxicity.encoder import embedded_weights_digest
from toxicity.fine_tuning import Progress, TrainingPlan, fine_tune

RANK = 8
LEFT, RIGHT = ":left", ":right"
PLAN = TrainingPlan(epochs=2, learning_rate=5e-5, batch_size=32)


def starter_file() -> Path:
    """Return the file that ships with the code."""
    return Path(str(resources.files("toxicity") / "starter.safetensors"))


def apply_starter(classifier: Classifier, file: Path) -> None:
    """Set a classifier over the embedded encoder, freshly built, to the starter's weights.

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
    classifier.set_weights(_expanded(classifier.weights(), tensors))


def make_starter(
    classifier: Classifier, corpus: Path, file: Path, report: Callable[[Progress], None] = lambda progress: None
) -> dict[str, str]:
    """Fine-tune a fresh classifier over the embedded encoder on a Jigsaw-format CSV, write the starter, return its metadata."""
    before = classifier.weights()
    comments = read_corpus(corpus)
    fine_tune(classifier, comments, PLAN, report)
    metadata = {
        "encoder_sha256": embedded_weights_digest(),
        "comments": str(len(comments)),
        "epochs": str(PLAN.epochs),
        "learning_rate": str(PLAN.learning_rate),
        "batch_size": str(PLAN.batch_size),
        "seed": str(PLAN.seed),
        "rank": str(RANK),
    }
    file.write_bytes(save(_compressed(before, classifier.weights()), metadata))
    return metadata


def _compressed(before: Weights, after: Weights) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in after.items():
        if name.startswith(HEAD):
            kept[name] = value.astype(np.float16)
        elif value.ndim == 1:
            kept[name] = (value - before[name]).astype(np.float16)
        elif "embeddings" not in name and "pooler" not in name:
            left, scale, right = np.linalg.svd(value - before[name], full_matrices=False)
            root = np.sqrt(scale[:RANK])
            kept[name + LEFT] = (left[:, :RANK] * root).astype(np.float16)
            kept[name + RIGHT] = (root[:, None] * right[:RANK]).astype(np.float16)
    return kept


def _expanded(before: dict[str, FloatArray], kept: dict[str, Any]) -> dict[str, FloatArray]:
    after = dict(before)
    for name, value in before.items():
        if name.startswith(HEAD):
            after[name] = kept[name].astype(np.float32)
        elif name in kept:
            after[name] = value + kept[name].astype(np.float32)
        elif name + LEFT in kept:
            after[name] = value + kept[name + LEFT].astype(np.float32) @ kept[name + RIGHT].astype(np.float32)
    return after
