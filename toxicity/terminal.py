"""What commands show while they work and when they are done: a progress bar that Ctrl-C ends for certain, and tables.

Not here: the commands themselves (__main__.py).
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

from toxicity.labels import LABELS

if TYPE_CHECKING:
    from toxicity.fine_tuning import Progress  # imports TensorFlow


@contextmanager
def training_bar(comments: int) -> Iterator["Callable[[Progress], None]"]:
    """Show a bar of comments trained, with their rate, the loss and the time left; give what reports to it."""
    with tqdm(total=comments, unit=" comments", mininterval=0.5) as bar, _certain_interrupt() as interrupted:
        mean: float | None = None

        def report(progress: "Progress") -> None:
            nonlocal mean
            if interrupted.is_set():
                raise KeyboardInterrupt
            mean = progress.loss if mean is None else 0.95 * mean + 0.05 * progress.loss
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            bar.update(round(comments * progress.step / progress.steps) - bar.n)

        yield report


@contextmanager
def _certain_interrupt() -> Iterator[threading.Event]:
    """Note Ctrl-C: Python drops a KeyboardInterrupt that comes while some callback of a library runs."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def print_measures(measures: Mapping[str, float], thresholds: Sequence[float]) -> None:
    """Print a table of each label's measures, and their means."""
    print(f"\n{'':14} {'ROC AUC':>8} {'F1':>8} {'precision':>9} {'recall':>8} {'positives':>9} {'threshold':>9}")
    for label, threshold in zip(LABELS, thresholds, strict=True):
        auc, f1, precision, recall = (measures.get(f"{label}.{name}") for name in ("roc_auc", "f1", "precision", "recall"))
        values = f"{shown(auc, 8)} {shown(f1, 8)} {shown(precision, 9)} {shown(recall, 8)}"
        print(f"{label:14} {values} {measures.get(f'{label}.positives', 0):9.0f} {threshold:9.3f}")
    print(f"{'mean':14} {shown(measures.get('mean_roc_auc'), 8)}    log loss {shown(measures.get('log_loss'), 0)}\n")


def shown(value: float | None, width: int) -> str:
    """Return a measure with four places, right-aligned; `-` where it is not known."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.4f}"
