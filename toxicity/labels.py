"""The six labels: their order, their names in the wild, and how a probability becomes a tick.

Pure functions over plain values. Not here: how Label Studio spells a prediction (label_studio.py).
"""

import re
from collections.abc import Mapping, Sequence

LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
"""The Jigsaw challenge's labels in the challenge's order: column k of every probability array is LABELS[k]."""

ALIASES: Mapping[str, str] = {
    "toxicity": "toxic",
    "severely_toxic": "severe_toxic",
    "severe_toxicity": "severe_toxic",
    "very_toxic": "severe_toxic",
    "obscenity": "obscene",
    "profanity": "obscene",
    "threats": "threat",
    "threatening": "threat",
    "insults": "insult",
    "insulting": "insult",
    "identity_attack": "identity_hate",
    "identity_based_hate": "identity_hate",
    "identity_hatred": "identity_hate",
    "hate": "identity_hate",
    "hate_speech": "identity_hate",
}
"""Names that teams use for the same six things (Perspective API's and Detoxify's among them)."""

DEFAULT_THRESHOLDS = (0.5,) * len(LABELS)


def canonical_label(name: str) -> str | None:
    """Return which of LABELS a name means, forgiving case, spaces, hyphens and common aliases; None if none."""
    folded = re.sub(r"[\W_]+", "_", name.casefold()).strip("_")
    return folded if folded in LABELS else ALIASES.get(folded)


def ticked(probabilities: Sequence[float], thresholds: Sequence[float] = DEFAULT_THRESHOLDS) -> list[str]:
    """Return the labels whose probability reaches its threshold, in LABELS' order. Both arguments have length 6."""
    return [label for label, p, t in zip(LABELS, probabilities, thresholds, strict=True) if p >= t]


def confidence(probabilities: Sequence[float], thresholds: Sequence[float] = DEFAULT_THRESHOLDS) -> float:
    """Return how sure the model is of its ticks: 0 (a label sits on its threshold) to 1 (all six are clear).

    A comment is as uncertain as its least certain label, because one wrong tick makes the annotator's work. Label
    Studio's uncertainty sampling serves the lowest of these first.
    """
    distances = [(p - t) / (1 - t) if p >= t else (t - p) / t for p, t in zip(probabilities, thresholds, strict=True)]
    return min(distances)
