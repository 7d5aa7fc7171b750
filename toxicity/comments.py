"""A labelled comment: what corpora and annotators give, and what training takes.

Not here: where it comes from (corpus.py, examples.py) and how it is learned (fine_tuning.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LabelledComment:
    """A comment and its six targets in LABELS' order: 1, 0, or None where nobody was asked for that label."""

    text: str
    targets: tuple[float | None, ...]
