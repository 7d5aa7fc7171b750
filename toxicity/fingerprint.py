"""What weights must agree with before they are loaded into a network: names, shapes, words, and the pretrained weights.

Not here: where weights are kept (versions.py). The network as it is trained and as it serves have one fingerprint.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from toxicity.predicting import FloatArray

if TYPE_CHECKING:
    from toxicity.tokenizer import Vocabulary  # imports bert-for-tf2

Weights = Mapping[str, FloatArray]
Shapes = Mapping[str, tuple[int, ...]]

HEAD = "dense_output"  # what the names of the head's weights begin with


def require_same_network(shapes: Shapes, weights: Weights) -> None:
    """Compare weights with the names and shapes that a network has.

    Raises:
        ValueError: a name is missing or unknown, or a shape differs.
    """
    if shapes.keys() != weights.keys():
        differing = sorted(shapes.keys() ^ weights.keys())
        raise ValueError(f"The weights are of another network: {len(differing)} names differ, the first is {differing[0]!r}.")
    for name, shape in shapes.items():
        if shape != weights[name].shape:
            raise ValueError(f"The weight {name!r} has shape {weights[name].shape}, expected {shape}.")


def pretrained_digest(weights: Weights) -> str:
    """Return the sha256 of an encoder's weights: two encoders may have the same shapes and words."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        if not name.startswith(HEAD):
            digest.update(value.tobytes())
    return digest.hexdigest()


def fingerprint(shapes: Shapes, vocabulary: "Vocabulary", pretrained: str) -> str:
    """Return a sha256 of all that weights must agree with."""
    described = {
        "variables": [[name, *shape] for name, shape in shapes.items()],
        "vocabulary": hashlib.sha256(vocabulary.file.read_bytes()).hexdigest(),
        "lower_case": vocabulary.lower_case,
        "pretrained": pretrained,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
