"""One training run over the network: what is replayed, at which rates, for how long.

Not here: which examples are new (examples.py), and what becomes of the result (versions.py). Every parameter is trained,
as in the tutorial; labels that a project does not offer are left out of the loss.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras

from toxicity.classifier import Classifier
from toxicity.comments import LabelledComment
from toxicity.devices import FLOAT16, Devices
from toxicity.fingerprint import HEAD
from toxicity.labels import LABELS
from toxicity.optimizer import AdamW
from toxicity.predicting import FloatArray
from toxicity.tokenizer import batches_by_length

HEAD_RATE_FACTOR = 10.0
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0
WARM_UP_SHARE = 0.1
LARGEST_WEIGHT = 20.0  # a label with one positive in a corpus would drown all others
LARGEST_SCALE = 2.0**15
GROWTH_STEPS = 1000
SHUFFLE_POOL = 8  # batches of like length are formed inside this many batches, so that order stays random


@dataclass(frozen=True)
class TrainingPlan:
    """How one training run goes: passes over its comments, the encoder's peak learning rate, comments a step, order's seed."""

    epochs: int
    learning_rate: float
    batch_size: int = 16
    seed: int = 0


CORPUS_PLAN = TrainingPlan(epochs=3, learning_rate=1e-4, batch_size=32)
"""For thousands of comments and a fresh head, where a project's run has dozens and starts from weights that know something."""


@dataclass(frozen=True)
class Progress:
    """Where a training run stands: optimizer steps done, steps in all, and the last step's loss."""

    step: int
    steps: int
    loss: float


def cross_entropy(targets: Any, probabilities: Any) -> Any:
    """Return the binary cross-entropy of each label, both arguments and the result of shape (comments, 6)."""
    return tf_keras.backend.binary_crossentropy(targets, probabilities)


def weighted_cross_entropy(targets: Any, probabilities: Any, weights: Sequence[float]) -> Any:
    """Return the same with each positive counted `weights` times, a number for each label."""
    return cross_entropy(targets, probabilities) * (1 + targets * (tf.constant(weights, tf.float32) - 1))


def positive_weights(comments: Sequence[LabelledComment]) -> tuple[float, ...]:
    """Return how often each label's positives count in learning a corpus: the root of the negatives that there are to one."""
    weights = []
    for column in range(len(LABELS)):
        positives, negatives = (sum(comment.targets[column] == value for comment in comments) for value in (1, 0))
        ratio = math.sqrt(negatives / positives) if positives else 1.0
        weights.append(round(min(max(ratio, 1.0), LARGEST_WEIGHT), 1))
    return tuple(weights)


def rate_factor(variable: str) -> float:
    """Return how many times the encoder's learning rate a variable has: the head is new or small, the encoder is pretrained."""
    return HEAD_RATE_FACTOR if variable.startswith(HEAD) else 1.0


@dataclass(frozen=True)
class Recipe:
    """What is minimized, and each variable's factor on the learning rate: what benchmarks/quality.py compares."""

    loss: Callable[[Any, Any], Any] = cross_entropy
    rate_factor: Callable[[str], float] = rate_factor


def corpus_recipe(weights: Sequence[float]) -> Recipe:
    """Return what a corpus is learned by (docs/decisions/0012)."""
    return Recipe(loss=lambda targets, probabilities: weighted_cross_entropy(targets, probabilities, weights))


@dataclass(frozen=True)
class Trained:
    """What a training run was: the last epoch's mean loss, epochs run, and after each of them the loss that was watched."""

    loss: float
    epochs: int
    watched: tuple[float, ...]


class LossScale:
    """Dynamic loss scaling for float16, whose gradients would otherwise vanish (Micikevicius et al. 2018).

    A step whose gradients overflow changes nothing and halves the scale; GROWTH_STEPS good ones in a row double it.
    """

    def __init__(self) -> None:
        """Start at LARGEST_SCALE; to be made in the scope of the strategy that trains."""
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.value = tf.Variable(LARGEST_SCALE, trainable=False, aggregation=first)
        self._good_steps = tf.Variable(0, trainable=False, aggregation=first)

    def unscaled(self, gradients: Sequence[Any]) -> list[Any]:
        """Return the gradients of the loss itself, or nought for each where one is no number; adapt the scale."""
        dense = [tf.convert_to_tensor(gradient) / self.value for gradient in gradients]
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in dense])
        good_steps = tf.where(finite, self._good_steps + 1, 0)
        grown = tf.where(good_steps >= GROWTH_STEPS, self.value * 2, self.value)
        unscaled = [tf.where(finite, gradient, tf.zeros_like(gradient)) for gradient in dense]
        with tf.control_dependencies(unscaled):  # they are divided by the scale as it was
            self._good_steps.assign(good_steps % GROWTH_STEPS)
            self.value.assign(tf.clip_by_value(tf.where(finite, grown, self.value / 2), 1.0, LARGEST_SCALE))
        return unscaled


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
    watch: Callable[[], float] | None = None,
    recipe: Recipe = Recipe(),
) -> Trained:
    """Train every parameter in place on the comments, on the devices that the classifier was built for.

    The classifier must not be serving. `report` is called after every step and may raise to end the run. `watch` is called
    after every epoch and returns the loss on comments that are not trained on: the first epoch that does not lower it is the
    last, and the weights are those of the best.

    Raises:
        ValueError: there are no comments, or the loss stopped being a number.
    """
    if not comments:
        raise ValueError("There is nothing to train on: 0 comments were given.")
    devices = classifier.devices or Devices((), None)
    encoded = [classifier.tokenizer.encode(comment.text) for comment in comments]
    targets = np.array([comment.targets for comment in comments], np.float32)  # None becomes nan
    asked = np.isfinite(targets).astype(np.float32)
    targets = np.nan_to_num(targets)
    step_function = _training_step(classifier, devices, recipe)
    batches_an_epoch = -(-len(comments) // plan.batch_size)
    steps = plan.epochs * batches_an_epoch
    losses: list[float] = []
    watched: list[float] = []
    best: dict[str, FloatArray] = {}
    for epoch in range(plan.epochs):
        with devices.mixed_precision():
            for rows in _shuffled_batches([len(ids) for ids in encoded], plan.batch_size, plan.seed + epoch):
                batch = classifier.tokenizer.pad([encoded[row] for row in rows])
                rate = plan.learning_rate * _schedule(len(losses), steps)
                inputs = [tf.constant(array) for array in batch.inputs()]
                loss = float(step_function(inputs, targets[rows], asked[rows], tf.constant(rate, tf.float32)))
                if not np.isfinite(loss):
                    raise ValueError(
                        f"The loss became {loss} at step {len(losses) + 1} of {steps}, with the learning rate "
                        f"{plan.learning_rate}: lower it (LEARNING_RATE, for a project's own runs)."
                    )
                losses.append(loss)
                report(Progress(len(losses), steps, loss))
        if watch is not None:
            watched.append(watch())
            if len(watched) > 1 and watched[-1] >= min(watched[:-1]):
                classifier.set_weights(best)
                break
            best = classifier.weights()
    return Trained(float(np.mean(losses[-batches_an_epoch:])), len(losses) // batches_an_epoch, tuple(watched))


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to nothing, as in BERT's own fine-tuning."""
    return min(1.0, (step + 1) / max(1.0, WARM_UP_SHARE * steps)) * (1 - step / steps)


def _shuffled_batches(lengths: Sequence[int], batch_size: int, seed: int) -> list[npt.NDArray[np.intp]]:
    """Random batches in random order, sorted by length only within pools, so that little of a batch is padding."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    batches: list[npt.NDArray[np.intp]] = []
    # A pool of the whole set would put the same comments together in every epoch.
    pool_size = batch_size * min(SHUFFLE_POOL, max(1, len(lengths) // (4 * batch_size)))
    for start in range(0, len(order), pool_size):
        pool = order[start : start + pool_size]
        batches.extend(pool[rows] for rows in batches_by_length([lengths[row] for row in pool], batch_size))
    return [batches[index] for index in generator.permutation(len(batches))]


def _training_step(classifier: Classifier, devices: Devices, recipe: Recipe) -> Callable[..., Any]:
    """Return a compiled step: inputs, targets (n, 6), asked (n, 6), rate -> loss; it updates the weights."""
    strategy = devices.strategy()
    model = classifier.model
    variables = model.trainable_variables
    factors = [recipe.rate_factor(variable.name) for variable in variables]
    with strategy.scope():
        scale = LossScale() if devices.precision == FLOAT16 else None
        optimizer = AdamW(variables, factors, WEIGHT_DECAY)

    def replica_step(inputs: Any, targets: Any, asked: Any, rate: Any) -> Any:
        context = tf.distribute.get_replica_context()
        part = slice(context.replica_id_in_sync_group, None, strategy.num_replicas_in_sync)
        # An example that was asked for nothing adds nothing; len(LABELS) keeps the scale of a full example.
        examples = len(LABELS) * tf.cast(tf.shape(targets)[0], tf.float32)
        with tf.GradientTape() as tape:
            probabilities = model([array[part] for array in inputs], training=True)
            losses = recipe.loss(targets[part], probabilities) * asked[part]
            loss = tf.reduce_sum(losses) / examples
            scaled = loss * scale.value if scale else loss
        gradients = tape.gradient(scaled, variables)
        present = [gradient for gradient in gradients if gradient is not None]
        if strategy.num_replicas_in_sync > 1:
            present = context.all_reduce(tf.distribute.ReduceOp.SUM, [tf.convert_to_tensor(each) for each in present])
        clipped, norm = tf.clip_by_global_norm(scale.unscaled(present) if scale else present, GRADIENT_NORM)
        remaining = iter(clipped)
        clipped = [None if gradient is None else next(remaining) for gradient in gradients]
        if scale:
            context.merge_call(_apply_unless_nought, args=(optimizer, norm, clipped, rate))
        else:
            optimizer.apply(clipped, rate)
        return loss

    def step(inputs: Any, targets: Any, asked: Any, rate: Any) -> Any:
        if scale is None:
            optimizer.begin_step()
        losses = strategy.run(replica_step, args=(inputs, targets, asked, rate))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    # Without the signature each new batch width is traced again, for seconds.
    comments = tf.TensorSpec((None, None), tf.int32)
    labels = tf.TensorSpec((None, len(LABELS)), tf.float32)
    signature = [[comments] * 3, labels, labels, tf.TensorSpec((), tf.float32)]
    compiled: Callable[..., Any] = tf.function(step, input_signature=signature)
    return compiled


def _apply_unless_nought(strategy: Any, optimizer: AdamW, norm: Any, gradients: Sequence[Any], rate: Any) -> None:
    # Where gradients overflowed, weight decay and the optimizer's moments must not move the weights either.
    def apply() -> None:
        optimizer.begin_step()
        strategy.extended.call_for_each_replica(optimizer.apply, args=(gradients, rate))

    tf.cond(strategy.experimental_local_results(norm)[0] > 0, apply, lambda: None)
