"""Which of a project's examples are held out: never trained on, so that versions can be judged on them.

Not here: where the choice is kept (examples.py), and what is judged (evaluation.py, verdict.py). The choice is made once, by
a hash of the task, and kept: an example that changes stays on its side.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence

from toxicity.comments import LabelledComment
from toxicity.labels import LABELS

Targets = tuple[float | None, ...]

RAREST_FIRST = ("threat", "identity_hate", "severe_toxic", "insult", "obscene", "toxic")  # in the challenge's data
STOPPING_SHARE = 0.25
SMALL_STRATUM = 50  # examples: in a smaller one chance alone would often hold out none, or half
CHANCE = 2.0  # standard deviations
MOST_CORRECTED = 0.5  # of new examples are held out at most, where HOLD_OUT was raised: a project must go on learning


def newly_assigned(project: int, examples: Mapping[int, Targets], held_out: Mapping[int, bool], share: float) -> dict[int, bool]:
    """Return for each example that has no side yet whether it is held out; `held_out` holds the sides of the others.

    A task is held out where its hash says so, at the given share. Stratified: only where that would take a stratum (the
    examples with the same rarest label, or with none) further from its share than chance explains, or more than one example
    in a small one, is the next new one put on the other side. So examples that are added later change hardly any choice.
    """
    assigned: dict[int, bool] = {}
    strata: dict[str, list[int]] = {}
    for task, targets in examples.items():
        strata.setdefault(stratum(targets), []).append(task)
    for tasks in strata.values():
        known = [held_out[task] for task in tasks if task in held_out]
        total, held = len(known), sum(known)
        # In an order that says nothing of who is held out: else all of those would come first, and be corrected.
        new = sorted((task for task in tasks if task not in held_out), key=lambda task: place(project, task, "order"))
        for seen, task in enumerate(new, 1):
            total += 1
            slack = 1.0 if total < SMALL_STRATUM else 1 + CHANCE * math.sqrt(share * (1 - share) * total)
            chance = place(project, task) < share and held <= share * total + slack
            correction = held < share * total - slack and held - sum(known) < max(share, MOST_CORRECTED) * seen
            assigned[task] = share > 0 and (chance or correction)
            held += assigned[task]
    return assigned


def newly_assigned_by_text(
    project: int,
    examples: Mapping[int, Targets],
    texts: Mapping[int, int],
    held_out: Mapping[int, bool],
    held_out_texts: Mapping[int, bool],
    share: float,
) -> dict[int, bool]:
    """Return the same as newly_assigned, except that tasks with one text are on one side: that of the first to have one.

    `texts` has the hash of each example's text, `held_out_texts` the sides of texts that some task had before, be it gone.
    """
    first: dict[int, int] = {}
    for task in sorted(examples, key=lambda task: (task not in held_out, place(project, task))):
        first.setdefault(texts[task], task)
    known = held_out_texts.keys()
    apart = {
        task: targets
        for task, targets in examples.items()
        if task in held_out or (first[texts[task]] == task and texts[task] not in known)
    }
    sides = {**held_out, **newly_assigned(project, apart, held_out, share)}
    new = [task for task in examples if task not in held_out]
    return {task: held_out_texts[texts[task]] if texts[task] in known else sides[first[texts[task]]] for task in new}


def stratum(targets: Targets) -> str:
    """Return the rarest label that an example has, or 'clean'."""
    return next((label for label in RAREST_FIRST if targets[LABELS.index(label)] == 1), "clean")


def is_for_stopping(project: int, text: int) -> bool:
    """Whether a held-out text (its hash) decides when a run stops. The others judge it: choosing on them would flatter."""
    return place(project, text, "stopping") < STOPPING_SHARE


def without_copies(comments: Sequence[LabelledComment]) -> list[LabelledComment]:
    """Return the first comment with each text: copies are no evidence of their own."""
    return list({text_hash(comment.text): comment for comment in reversed(comments)}.values())[::-1]


def without_texts(comments: Sequence[LabelledComment], held_out: Sequence[LabelledComment]) -> list[LabelledComment]:
    """Return the comments whose text, case and white space aside, is that of no held-out one."""
    hidden = {text_hash(comment.text) for comment in held_out}
    return [comment for comment in comments if text_hash(comment.text) not in hidden]


def text_hash(text: str) -> int:
    """Return a number for a text, the same for texts that differ in case and white space alone."""
    text = " ".join(text.split()).casefold()
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])


def place(project: int, number: int, purpose: str = "held out") -> float:
    """Return a number's (a task's, say) place, from 0 to 1, in an order that has nothing to do with what it stands for."""
    digest = hashlib.sha256(f"{purpose} {project} {number}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
