"""Which of a project's examples are held out: never trained on, so that versions can be judged on them.

Not here: where the choice is kept (examples.py), and what is judged (evaluation.py, verdict.py). The choice is made once, by
a hash of the task, and kept: an example that changes stays on its side.
"""

import hashlib
from collections.abc import Mapping, Sequence

from toxicity.comments import LabelledComment
from toxicity.labels import LABELS

Targets = tuple[float | None, ...]

RAREST_FIRST = ("threat", "identity_hate", "severe_toxic", "insult", "obscene", "toxic")  # in the challenge's data
STOPPING_SHARE = 0.25
MOST_CORRECTED = 0.5  # of new examples are held out at most, where HOLD_OUT was raised: a project must go on learning


def newly_assigned(project: int, examples: Mapping[int, Targets], held_out: Mapping[int, bool], share: float) -> dict[int, bool]:
    """Return for each example that has no side yet whether it is held out; `held_out` holds the sides of the others.

    A task is held out where its hash says so, at the given share. Stratified: where that would take a stratum (the examples
    with the same rarest label, or with none) more than one example away from its share, the next new one corrects it.
    """
    assigned: dict[int, bool] = {}
    strata: dict[str, list[int]] = {}
    for task, targets in examples.items():
        strata.setdefault(stratum(targets), []).append(task)
    for tasks in strata.values():
        known = [held_out[task] for task in tasks if task in held_out]
        total, held = len(known), sum(known)
        new = sorted((task for task in tasks if task not in held_out), key=lambda task: place(project, task))
        for seen, task in enumerate(new, 1):
            total += 1
            chance = place(project, task) < share and held <= share * total + 1
            correction = held < share * total - 1 and held - sum(known) < max(share, MOST_CORRECTED) * seen
            assigned[task] = share > 0 and (chance or correction)
            held += assigned[task]
    return assigned


def newly_assigned_by_text(
    project: int, examples: Mapping[int, Targets], text_hashes: Mapping[int, int], held_out: Mapping[int, bool], share: float
) -> dict[int, bool]:
    """Return the same as newly_assigned, except that tasks with one text are on one side: that of the first to have one."""
    first: dict[int, int] = {}
    for task in sorted(examples, key=lambda task: (task not in held_out, place(project, task))):
        first.setdefault(text_hashes[task], task)
    apart = {task: targets for task, targets in examples.items() if task in held_out or first[text_hashes[task]] == task}
    sides = {**held_out, **newly_assigned(project, apart, held_out, share)}
    return {task: sides[first[text_hashes[task]]] for task in examples if task not in held_out}


def stratum(targets: Targets) -> str:
    """Return the rarest label that an example has, or 'clean'."""
    return next((label for label in RAREST_FIRST if targets[LABELS.index(label)] == 1), "clean")


def is_for_stopping(project: int, task: int) -> bool:
    """Whether a held-out example decides when a run stops. The others judge it: choosing on them would flatter."""
    return place(project, task, "stopping") < STOPPING_SHARE


def without_texts(comments: Sequence[LabelledComment], held_out: Sequence[LabelledComment]) -> list[LabelledComment]:
    """Return the comments whose text, case and white space aside, is that of no held-out one."""
    hidden = {text_hash(comment.text) for comment in held_out}
    return [comment for comment in comments if text_hash(comment.text) not in hidden]


def text_hash(text: str) -> int:
    """Return a number for a text, the same for texts that differ in case and white space alone."""
    text = " ".join(text.split()).casefold()
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])


def place(project: int, task: int, purpose: str = "held out") -> float:
    """Return a task's place, from 0 to 1, in an order that has nothing to do with what is in it."""
    digest = hashlib.sha256(f"{purpose} {project} {task}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
