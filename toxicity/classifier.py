"""The classifier of the tutorial: BERT, average over the word pieces, dropout, six sigmoids. Build, predict, weights in and out.

Not here: where weights are kept (versions.py) and how they are learned (fine_tuning.py). What differs from the tutorial:
the average leaves padding out, and comments are padded to their batch instead of the maximum length.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from toxicity.calibration import Calibration
from toxicity.devices import BFLOAT16, FLOAT16, Devices, share_gpu_memory
from toxicity.encoder import Encoder, load_encoder
from toxicity.fingerprint import HEAD, Weights, fingerprint, pretrained_digest, require_same_network
from toxicity.labels import LABELS
from toxicity.predicting import FloatArray, Predicting, batches_by_tokens
from toxicity.settings import EMBEDDED
from toxicity.tokenizer import TokenBatch, Tokenizer

DROPOUT_RATE = 0.2


class Classifier(Predicting):
    """One set of weights that answers. Its weights are set before it serves and never after (docs/decisions/0004)."""

    def __init__(self, model: Any, tokenizer: Tokenizer, devices: Devices | None = None) -> None:
        """Wrap a built Keras model; use build_classifier to get one. `devices` are those that it was built for to be trained."""
        self.model = model
        self.tokenizer = tokenizer
        self.devices = devices
        self._pretrained = pretrained_digest(self.weights())
        signature = [tf.TensorSpec((None, None), tf.int32) for _ in range(3)]
        self._probabilities: Callable[..., Any] = tf.function(
            lambda *inputs: model(list(inputs), training=False), input_signature=signature
        )

    def predict_batch(self, batch: TokenBatch) -> FloatArray:
        """Return probabilities of shape (comments, 6) for one padded batch."""
        result: FloatArray = self._probabilities(*batch.inputs()).numpy()
        return result

    def predict_encoded(self, encoded: Sequence[Sequence[int]]) -> FloatArray:
        """Return probabilities of shape (len(encoded), 6); comments of like length are computed together."""
        probabilities = np.empty((len(encoded), len(LABELS)), np.float32)
        for rows in batches_by_tokens([len(ids) for ids in encoded]):
            probabilities[rows] = self.predict_batch(self.tokenizer.pad([encoded[row] for row in rows]))
        return probabilities

    def variables(self) -> dict[str, Any]:
        """Return every trainable variable by the name under which its values are kept."""
        named: dict[str, Any] = {}
        for variable in self.model.trainable_variables:
            name = variable.name.removesuffix(":0")
            named[name if name.startswith(HEAD) else f"encoder/{name}"] = variable
        if len(named) != len(self.model.trainable_variables):
            raise ValueError(
                f"The encoder has {len(self.model.trainable_variables)} trainable variables but only {len(named)} different "
                "names, so its weights cannot be kept by name. Export it again with distinct variable names."
            )
        return named

    def weights(self) -> dict[str, FloatArray]:
        """Return a copy of every weight by name."""
        return {name: variable.numpy() for name, variable in self.variables().items()}

    def precision(self) -> str:
        """Return in which numbers it is trained: 'float32', or what mixed precision the devices have."""
        return {FLOAT16: "mixed float16", BFLOAT16: "mixed bfloat16"}.get(
            self.devices.precision or "" if self.devices else "", "float32"
        )

    def is_finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(np.isfinite(variable.numpy()).all()) for variable in self.variables().values())

    def set_weights(self, weights: Weights) -> None:
        """Take over weights; only before the classifier serves.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs; nothing was changed then.
        """
        variables = self.variables()
        require_same_network(self._shapes(), weights)
        for name, variable in variables.items():
            variable.assign(weights[name])

    def fold(self, calibration: Calibration) -> None:
        """Take a calibration into the head, so that the network itself answers with calibrated probabilities; exact.

        What is trained on from there needs no calibration of before: it would undo what is learned.
        """
        kernel, bias = (self.variables()[f"{HEAD}/{name}"] for name in ("kernel", "bias"))
        slopes = np.array(calibration.slopes, np.float32)
        kernel.assign(kernel.numpy() * slopes)
        bias.assign(bias.numpy() * slopes + np.array(calibration.offsets, np.float32))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(variable.shape) for name, variable in self.variables().items()}

    def fingerprint(self) -> str:
        """Return what weights must agree with."""
        return fingerprint(self._shapes(), self.tokenizer.vocabulary, self._pretrained)


def build_classifier(handle: str, data_dir: Path, max_length: int, devices: Devices | None = None) -> Classifier:
    """Build the network over an encoder handle, its head freshly drawn from a fixed seed.

    With devices it can be trained on all of them; without, it is to answer, or to be trained where TensorFlow puts it.

    Raises:
        ValueError: the handle is no usable encoder (see load_encoder), or max_length is too small.
    """
    share_gpu_memory()
    strategy = devices.strategy() if devices else tf.distribute.get_strategy()
    built_mixed = False
    if handle == EMBEDDED and devices is not None and devices.precision == BFLOAT16:
        built_mixed, devices = True, replace(devices, rewrites=False)
    with strategy.scope():
        encoder = load_encoder(handle, data_dir, bfloat16=built_mixed)
        tokenizer = Tokenizer(encoder.vocabulary, max_length)
        classifier = Classifier(_network(encoder), tokenizer, devices)
    try:
        classifier.predict_batch(tokenizer.pad([[0] * max_length]))
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"The encoder {handle!r} cannot read MAX_LENGTH={max_length} word pieces; BERT has 512 positions. Use a smaller one."
        ) from error
    return classifier


def _network(encoder: Encoder) -> Any:
    word_ids, mask, segments = (
        tf_keras.Input((None,), dtype=tf.int32, name=name) for name in ("input_word_ids", "input_mask", "segment_ids")
    )
    sequence_output = encoder.sequence_output(word_ids, mask, segments)
    average = tf_keras.layers.GlobalAveragePooling1D()(sequence_output, mask=tf.cast(mask, tf.bool))
    dropped = tf_keras.layers.Dropout(DROPOUT_RATE, seed=0)(average)
    initializer = tf_keras.initializers.GlorotUniform(seed=0)
    head = tf_keras.layers.Dense(len(LABELS), activation="sigmoid", name=HEAD, kernel_initializer=initializer)
    return tf_keras.Model([word_ids, mask, segments], head(dropped))
