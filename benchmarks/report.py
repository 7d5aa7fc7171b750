"""What a benchmark found, as a table, as JSON and as a picture.

Not here: what is measured (bench.py).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("agg")
from matplotlib import pyplot


@dataclass(frozen=True)
class Line:
    """One line of the table: what was measured, the ratios of all rounds, and what they have to reach."""

    name: str
    ratios: tuple[float, ...]
    goal: float | None  # None: it is told, and has none
    at_least: bool  # or at most

    def median(self) -> float:
        """Return the median ratio."""
        return float(np.median(self.ratios))

    def is_reached(self) -> bool:
        """Whether the median reaches the goal."""
        if self.goal is None:
            return True
        return self.median() >= self.goal if self.at_least else self.median() <= self.goal


def print_table(lines: Sequence[Line]) -> None:
    """Print each line's median, spread, and goal."""
    print(f"\n{'':58} {'median':>8} {'spread':>17} {'goal':>8}")
    for line in lines:
        spread = f"{min(line.ratios):.3f} - {max(line.ratios):.3f}" if len(line.ratios) > 1 else ""
        goal = "" if line.goal is None else f"{'>=' if line.at_least else '<='} {line.goal:g}"
        print(f"{line.name:58} {line.median():8.3f} {spread:>17} {goal:>8}{'' if line.is_reached() else '  NOT REACHED'}")
    print("\nRatios are ours to the peer's in one run, if nothing else is said; median, and least and greatest, of the rounds.")


def write_json(lines: Sequence[Line], output: Path) -> None:
    """Write each line, with its median."""
    output.write_text(json.dumps([asdict(line) | {"median": line.median()} for line in lines], indent=1))


def draw(lines: Sequence[Line], output: Path) -> None:
    """Draw how many times faster it is than the peer."""
    shown = [line for line in lines if line.name.startswith(("bulk", "single", "16", "fine"))]
    factors = [line.median() if line.at_least else 1 / line.median() for line in shown]
    figure, axes = pyplot.subplots(figsize=(8, 0.7 * len(shown) + 1))
    bars = axes.barh([line.name for line in shown], factors, color="#3b6ea5")
    axes.bar_label(bars, [f"{factor:.1f}" for factor in factors], padding=3)
    axes.set_xlim(0, 1.1 * max(factors))
    axes.axvline(1, color="grey", linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the peer")
    figure.tight_layout()
    figure.savefig(output, dpi=120)
