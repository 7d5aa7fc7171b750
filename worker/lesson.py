"""What one training run learns, and what it is judged on: new examples, replayed ones, held-out ones.

Not here: how it is learned (toxicity/fine_tuning.py) and what becomes of it (training.py). No text that is held out is ever
among those to learn from, whichever task or file it stands in.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toxicity.comments import LabelledComment
from toxicity.corpus import anchors_file, read_corpus
from toxicity.examples import ExampleStore, Snapshot
from toxicity.fine_tuning import replay_indices
from toxicity.hold_out import is_for_stopping, newly_assigned_by_text, place, text_hash, without_copies, without_texts
from toxicity.settings import Settings

logger = logging.getLogger(__name__)

LEAST_REPLAY = 64  # older examples and anchors in a run, whatever it learns: fewer do not hold a network in place
LEAST_ANCHORS = 32  # of them anchors, however many older examples there are
MOST_EXAMPLES = 2000  # new ones in a run, and replayed ones; where there are more new ones, the next run goes on from there
MOST_HELD_OUT = 2000


@dataclass(frozen=True)
class Lesson:
    """`new` and `replayed` are learned, `stopping` tells when to stop, `judging` judges; the last event in it is `watermark`."""

    watermark: str
    new: list[LabelledComment]
    replayed: list[LabelledComment]
    stopping: list[LabelledComment]
    judging: list[LabelledComment]


def next_lesson(settings: Settings, store: ExampleStore, project: int, watermark: str, attempts: int, seed: int) -> Lesson:
    """Return what is new since a watermark, the oldest first, with all that goes with it.

    After `attempts` rejected ones the lesson is so much longer: the same comments again would be rejected again. Where all
    that is new is blank, tied or held out, `new` is empty.
    """
    at_most = MOST_EXAMPLES * (attempts + 1)
    while True:
        snapshot = store.snapshot(project, watermark, at_most=at_most)
        sides = _sides(settings, store, project, snapshot)
        stopping, judging, unused = _held_out(store, project, snapshot, sides)
        held_out = stopping + judging + unused
        changed = sorted(task for task in snapshot.changed if not sides[task])
        new = without_texts(store.comments(project, snapshot, changed), held_out)
        if new or snapshot.watermark == watermark:
            break
        watermark = snapshot.watermark
    replayed = without_texts(_replayed(settings, store, project, snapshot, sides, seed), held_out)
    return Lesson(snapshot.watermark, new, replayed, stopping, judging)


def _held_out(
    store: ExampleStore, project: int, snapshot: Snapshot, sides: dict[int, bool]
) -> tuple[list[LabelledComment], list[LabelledComment], list[LabelledComment]]:
    """What tells when to stop, what judges, and what is more than is needed for either but is not learned all the same."""
    tasks = sorted((task for task in snapshot.targets if sides[task]), key=lambda task: place(project, task))
    held_out = without_copies(store.comments(project, snapshot, tasks))
    used, unused = held_out[:MOST_HELD_OUT], held_out[MOST_HELD_OUT:]
    stopping = [comment for comment in used if is_for_stopping(project, text_hash(comment.text))]
    judging = [comment for comment in used if not is_for_stopping(project, text_hash(comment.text))]
    return stopping, judging, unused


def _sides(settings: Settings, store: ExampleStore, project: int, snapshot: Snapshot) -> dict[int, bool]:
    sides = store.sides(project)
    if snapshot.targets.keys() - sides.keys():
        texts, of_texts = store.text_hashes(project, list(snapshot.targets)), store.text_sides(project)
        new = newly_assigned_by_text(project, snapshot.targets, texts, sides, of_texts, settings.hold_out)
        known = {**sides, **new}
        store.assign(project, new, {texts[task]: known[task] for task in snapshot.targets if texts[task] not in of_texts})
        sides = store.sides(project)  # a rival run may have been first
    return sides


def _replayed(
    settings: Settings, store: ExampleStore, project: int, snapshot: Snapshot, sides: dict[int, bool], seed: int
) -> list[LabelledComment]:
    """Older examples of the project, a sample of CORPUS, and anchors: they keep in mind what annotators rarely show."""
    older = sorted(task for task in snapshot.targets.keys() - snapshot.changed if not sides[task])
    new = sum(not sides[task] for task in snapshot.changed)
    count = min(max(settings.replay * new, LEAST_REPLAY), max(MOST_EXAMPLES, LEAST_REPLAY))
    indices = replay_indices([snapshot.targets[task] for task in older], count, seed)
    replayed = store.comments(project, snapshot, [older[index] for index in indices])
    if settings.corpus:
        replayed += _drawn(_corpus(Path(settings.corpus)), count - len(replayed) + LEAST_REPLAY, seed)
    return replayed + _drawn(read_corpus(anchors_file()).comments, max(LEAST_ANCHORS, LEAST_REPLAY - len(replayed)), seed)


def _corpus(path: Path) -> list[LabelledComment]:
    """The corpus, or nothing where it cannot be read: what annotators did is learned all the same."""
    try:
        return read_corpus(path).comments
    except (ValueError, OSError) as error:
        logger.error("CORPUS is left out: %s", error)
        return []


def _drawn(comments: Sequence[LabelledComment], count: int, seed: int) -> list[LabelledComment]:
    return [comments[index] for index in replay_indices([comment.targets for comment in comments], count, seed)]
