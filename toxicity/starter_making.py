"""Making the starter: a corpus learned, and what was learned compressed into one small file.

Not here: how the file is used (starter.py).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from toxicity.bert import embedded_weights_digest
from toxicity.calibration import Decision, undo_weights
from toxicity.classifier import Classifier
from toxicity.corpus import CorpusSplit
from toxicity.evaluation import choose, measures, targets_of
from toxicity.fine_tuning import CORPUS_PLAN, Progress, corpus_recipe, fine_tune, positive_weights
from toxicity.fingerprint import HEAD, Weights
from toxicity.starter import LEFT, RIGHT, expanded

RANK = 8


def make_starter(
    classifier: Classifier, split: CorpusSplit, file: Path, report: Callable[[Progress], None] = lambda progress: None
) -> tuple[Decision, dict[str, float]]:
    """Fine-tune a fresh classifier over the embedded encoder on a corpus, write the starter, return its decision and measures.

    Both are of the starter as it is written, on the held-out comments.
    """
    before = classifier.weights()
    weights = positive_weights(split.training)
    fine_tune(classifier, split.training, CORPUS_PLAN, report, recipe=corpus_recipe(weights))
    kept = compressed(before, classifier.weights())
    classifier.set_weights(expanded(before, kept))
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


def compressed(before: Weights, after: Weights) -> dict[str, Any]:
    """Return what a starter keeps of weights that were fine-tuned from pretrained ones."""
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
