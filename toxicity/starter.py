"""The starter: what every project's first version is, so that a fresh install does not answer with noise.

Not here: versions that a project learned by itself (versions.py). The starter ships with the code as one small file: the
head and all biases and norms in full, and of each weight matrix only the largest singular directions of its difference
to the embedded encoder. No text of the corpus is in it.
"""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from toxicity.calibration import Calibration, Decision, undo_weights
from toxicity.classifier import HEAD, Classifier, FloatArray, Weights
from toxicity.corpus import CorpusSplit
from toxicity.encoder import embedded_weights_digest
from toxicity.evaluation import choose, measures, targets_of
from toxicity.fine_tuning import CORPUS_PLAN, Progress, corpus_recipe, fine_tune, positive_weights

RANK = 8
LEFT, RIGHT = ":left", ":right"


def starter_file() -> Path:
    """Return the file that ships with the code."""
    return Path(str(resources.files("toxicity") / "starter.safetensors"))


def apply_starter(classifier: Classifier, file: Path) -> Decision:
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
    classifier.set_weights(_expanded(classifier.weights(), tensors))
    calibration = Calibration(*(tuple(json.loads(metadata[field])) for field in ("slopes", "offsets")))
    return Decision(calibration, tuple(json.loads(metadata["thresholds"])))


def make_starter(
    classifier: Classifier, split: CorpusSplit, file: Path, report: Callable[[Progress], None] = lambda progress: None
) -> tuple[Decision, dict[str, float]]:
    """Fine-tune a fresh classifier over the embedded encoder on a corpus, write the starter, return its decision and measures.

    Both are of the starter as it is written, on the held-out comments.
    """
    before = classifier.weights()
    weights = positive_weights(split.training)
    fine_tune(classifier, split.training, CORPUS_PLAN, report, recipe=corpus_recipe(weights))
    kept = _compressed(before, classifier.weights())
    classifier.set_weights(_expanded(before, kept))
    answers, targets = classifier.predict([comment.text for comment in split.held_out]), targets_of(split.held_out)
    decision = choose(targets, answers, undo_weights(weights))
    metadata = {
        "encoder_sha256": embedded_weights_digest(),
        "comments": str(len(split.training)),
        "held_out": str(len(split.held_out)),
        "epochs": str(CORPUS_PLAN.epochs),
        "learning_rate": str(CORPUS_PLAN.learning_rate),
        "batch_size": str(CORPUS_PLAN.batch_size),
        "seed": str(CORPUS_PLAN.seed),
        "rank": str(RANK),
        "thresholds": json.dumps(decision.thresholds),
        "slopes": json.dumps(decision.calibration.slopes),
        "offsets": json.dumps(decision.calibration.offsets),
    }
    aside = file.with_name(f".{file.name}")  # a starter that is half written would serve every fresh install
    aside.write_bytes(save(kept, metadata))
    aside.replace(file)
    return decision, measures(targets, decision.calibration(answers), decision.thresholds)


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
