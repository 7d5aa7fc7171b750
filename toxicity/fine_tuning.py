"""One training run over the network: what is replayed, at which rates, for how long.

Not here: which examples are new (examples.py), and what becomes of the result (versions.py). Every parameter is trained,
as in the tutorial; labels that a project does not offer are left out of the loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from toxicity.classifier import HEAD, Classifier
from toxicity.comments import LabelledComment
from toxicity.labels import LABELS
from toxicity.tokenizer import batches_by_length

HEAD_RATE_FACTOR = 10.0  # the head is new or small, the encoder is pretrained
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0
WARM_UP_SHARE = 0.1
SHUFFLE_POOL = 8  # batches of like length are formed inside this many batches, so that order stays random


@dataclass(frozen=True)
class TrainingPlan:
    """How one training run goes: passes over its comments, the encoder's peak learning rate, comments a step, order's seed."""

    epochs: int
    learning_rate: float
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Progress:
    """Where a training run stands: optimizer steps done, steps in all, and the last step's loss."""

    step: int
    steps: int
    loss: float


def replay_indices(targets: Sequence[Sequence[float | None]], count: int, seed: int) -> list[int]:
    """Return which of the older examples (by index, ascending) are learned again beside the new ones: `count` at most.

    Half of the draw goes to examples with a positive, each label in turn and the rarest first, so that threats do not drown
    among the nine in ten comments that are clean; the rest is drawn from all. Without replacement. `targets` has a row of
    six for each older example.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(targets)).tolist()
    positives = [[row for row in order if targets[row][column] == 1] for column in range(len(LABELS))]
    chosen: set[int] = set()
    for place in range(count):
        for rows in sorted(positives, key=len):
            if place < len(rows) and len(chosen) < count // 2:
                chosen.add(rows[place])
    for row in order:
        if len(chosen) >= min(count, len(targets)):
            break
        chosen.add(row)
    return sorted(chosen)


def fine_tune(
    classifier: Classifier,
    comments: Sequence[LabelledComment],
    plan: TrainingPlan,
    report: Callable[[Progress], None] = lambda progress: None,
) -> float:
    """Train every parameter in place on the comments; return the mean loss of the last epoch.

    The classifier must not be serving. `report` is called after every step and may raise to end the run.

    Raises:
        ValueError: there are no comments, or the loss stopped being a number.
    """
    if not comments:
        raise ValueError("There is nothing to train on: 0 comments were given.")
    encoded = [classifier.tokenizer.encode(comment.text) for comment in comments]
    targets = np.array([comment.targets for comment in comments], np.float32)  # None becomes nan
    asked = np.isfinite(targets).astype(np.float32)
    targets = np.nan_to_num(targets)
    step_function = _training_step(classifier)
    batches_an_epoch = -(-len(comments) // plan.batch_size)
    steps = plan.epochs * batches_an_epoch
    losses: list[float] = []
    for epoch in range(plan.epochs):
        for rows in _shuffled_batches([len(ids) for ids in encoded], plan.batch_size, plan.seed + epoch):
            batch = classifier.tokenizer.pad([encoded[row] for row in rows])
            rate = plan.learning_rate * _schedule(len(losses), steps)
            inputs = [tf.constant(array) for array in batch.inputs()]
            loss = float(step_function(inputs, targets[rows], asked[rows], tf.constant(rate, tf.float32)))
            if not np.isfinite(loss):
                raise ValueError(f"The loss became {loss} at step {len(losses) + 1} of {steps}: lower LEARNING_RATE.")
            losses.append(loss)
            report(Progress(len(losses), steps, loss))
    return float(np.mean(losses[-batches_an_epoch:]))


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to nothing, as in BERT's own fine-tuning."""
    return min(1.0, (step + 1) / max(1.0, WARM_UP_SHARE * steps)) * (1 - step / steps)


def _shuffled_batches(lengths: Sequence[int], batch_size: int, seed: int) -> list[npt.NDArray[np.intp]]:
    """Random batches in random order, sorted by length only within pools, so that little of a batch is padding."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    batches: list[npt.NDArray[np.intp]] = []
    pool_size = SHUFFLE_POOL * batch_size
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        batches.extend(pool[rows] for rows in batches_by_length([lengths[row] for row in pool], batch_size))
    return [batches[index] for index in generator.permutation(len(batches))]


def _training_step(classifier: Classifier) -> Callable[..., Any]:
    """Return a compiled step: inputs, targets (n, 6), asked (n, 6), rate -> loss; it updates the weights."""
    model = classifier.model
    variables = model.trainable_variables
    is_head = [variable.name.startswith(HEAD) for variable in variables]
    body = [variable for variable, head in zip(variables, is_head, strict=True) if not head]
    top = [variable for variable, head in zip(variables, is_head, strict=True) if head]
    optimizers = [tf_keras.optimizers.AdamW(weight_decay=WEIGHT_DECAY) for _ in range(2)]
    for optimizer, group in zip(optimizers, (body, top), strict=True):
        # The pooler has no part in the six labels: its gradient is nought, and decay alone would shrink it.
        optimizer.exclude_from_weight_decay(var_names=["bias", "LayerNorm", "layer_norm", "pooler"])
        optimizer.build(group)

    def step(inputs: Any, targets: Any, asked: Any, rate: Any) -> Any:
        with tf.GradientTape() as tape:
            probabilities = model(inputs, training=True)
            losses = tf_keras.backend.binary_crossentropy(targets, probabilities) * asked
            # An example that was asked for nothing adds nothing; len(LABELS) keeps the scale of a full example.
            loss = tf.reduce_sum(losses) / (len(LABELS) * tf.cast(tf.shape(targets)[0], tf.float32))
        gradients = tape.gradient(loss, body + top)
        present = [gradient for gradient in gradients if gradient is not None]
        clipped_present, _ = tf.clip_by_global_norm(present, GRADIENT_NORM)
        clipped = iter(clipped_present)
        updates = [
            (next(clipped), variable) for gradient, variable in zip(gradients, body + top, strict=True) if gradient is not None
        ]
        names = {variable.name for variable in top}
        for optimizer, factor, head in zip(optimizers, (1.0, HEAD_RATE_FACTOR), (False, True), strict=True):
            optimizer.learning_rate.assign(rate * factor)
            optimizer.apply_gradients([(g, v) for g, v in updates if (v.name in names) == head])
        return loss

    # Without the signature each new batch width is traced again, for seconds.
    comments = tf.TensorSpec((None, None), tf.int32)
    labels = tf.TensorSpec((None, len(LABELS)), tf.float32)
    signature = [[comments] * 3, labels, labels, tf.TensorSpec((), tf.float32)]
    compiled: Callable[..., Any] = tf.function(step, input_signature=signature)
    return compiled
