"""The classifier over the embedded encoder as it serves: weights passed into one graph that every version shares.

Not here: the same network as it is trained (classifier.py). No Keras and no SavedModel: a version is loaded in well under a
second, nothing is traced again for it, and where the processor has bfloat16, its matrices are kept and multiplied in that.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from toxicity.bert import (
    bert_averages,
    embedded_config,
    embedded_model_dir,
    embedded_weights,
    is_multiplied,
    joined,
    variable_name,
)
from toxicity.fingerprint import HEAD, Shapes, Weights, fingerprint, pretrained_digest, require_same_network
from toxicity.labels import LABELS
from toxicity.predicting import FloatArray, Predicting
from toxicity.tokenizer import Tokenizer, Vocabulary

WIDTH_STEP = 4  # word pieces
FEW, WIDTH_STEP_OF_FEW = 256, 16  # where a new shape costs more than a little padding
WIDER_BY = 32  # word pieces that a row may be wider than its longest comment, where that costs less
WIDTH_OF_HALF = 200  # word pieces: width of a row at which attention takes as long as everything else
KERNEL, BIAS = f"{HEAD}/kernel", f"{HEAD}/bias"


@dataclass(frozen=True)
class _Embedded:
    """What is known of the embedded encoder without its weights: they are read again where they are needed, and not kept."""

    names: Mapping[str, str]  # under which a weight is kept -> of the weight in the graph
    shapes: Shapes
    joined_shapes: Shapes  # by the graph's names, as it takes them
    pretrained: str
    config: Mapping[str, Any]


class ServingClassifier(Predicting):
    """One set of weights that answers, and is never trained. Its weights are set before it serves and never after."""

    def __init__(self, max_length: int, bfloat16: bool) -> None:
        """Take the embedded encoder's words; set_weights has to come before the first prediction.

        Raises:
            ValueError: max_length is more than BERT has positions, or too small.
        """
        positions = int(_embedded().config["max_position_embeddings"])
        if max_length > positions:
            raise ValueError(
                f"The encoder 'embedded' cannot read MAX_LENGTH={max_length} word pieces; BERT has {positions} positions. "
                "Use a smaller one."
            )
        self.tokenizer = Tokenizer(Vocabulary(embedded_model_dir() / "vocab.txt", lower_case=True), max_length)
        self._numbers = tf.bfloat16 if bfloat16 else tf.float32
        self._tensors: dict[str, Any] = {}
        self._finite = False

    def weights(self) -> dict[str, FloatArray]:
        """Return the pretrained weights by the names under which they are kept, and a head of noughts."""
        pretrained, embedded = embedded_weights(), _embedded()
        head = {name: np.zeros(embedded.shapes[name], np.float32) for name in (KERNEL, BIAS)}
        return {key: pretrained[name] for key, name in embedded.names.items()} | head

    def fingerprint(self) -> str:
        """Return what weights must agree with; the same as that of the network as it is trained."""
        return fingerprint(_embedded().shapes, self.tokenizer.vocabulary, _embedded().pretrained)

    def set_weights(self, weights: Weights) -> None:
        """Take over weights; only before it serves.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs.
        """
        require_same_network(_embedded().shapes, weights)
        self._finite = all(bool(np.isfinite(value).all()) for value in weights.values())
        names, config = _embedded().names, _embedded().config
        exact = joined({name: tf.constant(weights[key]) for key, name in names.items()}, config)
        encoder = {name: tf.cast(value, _numbers_of(name, self._numbers)) for name, value in exact.items()}
        self._tensors = encoder | {KERNEL: tf.constant(weights[KERNEL]), BIAS: tf.constant(weights[BIAS])}

    def answer_exactly(self, weights: Weights) -> bool:
        """Compute in float32 from now on, with its weights given once more; return whether it did otherwise before."""
        was_rounded = bool(self._numbers != tf.float32)
        if was_rounded:
            self._numbers = tf.float32
            self.set_weights(weights)
        return was_rounded

    def is_finite(self) -> bool:
        """Whether every weight is a number."""
        return self._finite

    def predict_encoded(self, encoded: Sequence[Sequence[int]]) -> FloatArray:
        """Return probabilities of shape (len(encoded), 6), computed together."""
        rows = packed(encoded)
        result: FloatArray = _compiled(self._numbers)(rows, len(encoded), self._tensors).numpy()
        return result


def packed(encoded: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    """Return word ids, places and comments' numbers, (3, rows, word pieces), of comments put into rows of one width.

    The longest first, each into the first row that has room for it, so that little is padding whatever their lengths; of the
    widths that fit, the one that costs least. Widths are multiples of a step, as every new shape costs TensorFlow some
    milliseconds: of a longer one where those count.
    """
    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number]))
    lengths = [len(encoded[number]) for number in order]
    step = WIDTH_STEP if sum(lengths) > FEW else WIDTH_STEP_OF_FEW
    least = -(-lengths[0] // step) * step
    widths = range(least, least + (WIDER_BY if len(encoded) > 1 else 1), step)
    count, width, starts = min(
        (_starts(lengths, width) for width in widths), key=lambda found: found[0] * found[1] * (WIDTH_OF_HALF + found[1])
    )
    rows = np.zeros((3, count, width), np.int32)
    rows[2] = -1
    for number, (row, start) in zip(order, starts, strict=True):
        end = start + len(encoded[number])
        rows[0, row, start:end] = encoded[number]
        rows[1, row, start:end] = np.arange(end - start)
        rows[2, row, start:end] = number
    return rows


def _starts(lengths: Sequence[int], width: int) -> tuple[int, int, list[tuple[int, int]]]:
    """Return how many rows of a width comments fill, that width, and the row and place where each begins."""
    starts: list[tuple[int, int]] = []
    used: list[int] = []
    for length in lengths:
        row = next((row for row, taken in enumerate(used) if taken + length <= width), len(used))
        if row == len(used):
            used.append(0)
        starts.append((row, used[row]))
        used[row] += length
    return len(used), width, starts


@functools.cache
def _embedded() -> _Embedded:
    weights = {f"encoder/{variable_name(name)}": value for name, value in embedded_weights().items()}
    config = embedded_config()
    shapes = {key: value.shape for key, value in weights.items()}
    head = {KERNEL: (int(config["hidden_size"]), len(LABELS)), BIAS: (len(LABELS),)}
    names = dict(zip(weights, embedded_weights(), strict=True))
    given = joined({names[key]: value for key, value in weights.items()}, config)
    joined_shapes = {name: tuple(value.shape) for name, value in given.items()}
    return _Embedded(names, shapes | head, joined_shapes, pretrained_digest(weights), config)


def _numbers_of(name: str, numbers: Any) -> Any:
    return numbers if is_multiplied(name) else tf.float32


@functools.cache  # one graph for every version: tracing takes a second, during which other threads of Python's hardly get on
def _compiled(numbers: Any) -> Callable[..., Any]:
    embedded = _embedded()

    def probabilities(rows: Any, count: Any, tensors: Any) -> Any:
        averages = bert_averages(tensors, embedded.config, tf.unstack(rows), count)
        return tf.sigmoid(tf.matmul(averages, tensors[KERNEL]) + tensors[BIAS])

    rows, count = tf.TensorSpec((3, None, None), tf.int32), tf.TensorSpec((), tf.int32)
    kinds = {name: tf.TensorSpec(shape, _numbers_of(name, numbers)) for name, shape in embedded.joined_shapes.items()}
    kinds |= {name: tf.TensorSpec(embedded.shapes[name], tf.float32) for name in (KERNEL, BIAS)}
    compiled: Callable[..., Any] = tf.function(probabilities, input_signature=[rows, count, kinds], autograph=False)
    return compiled
