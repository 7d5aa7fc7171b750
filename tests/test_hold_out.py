"""Which examples are held out: the same ones whoever asks, so many of each kind, and for good."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxicity.comments import LabelledComment
from toxicity.hold_out import (
    CHANCE,
    SMALL_STRATUM,
    STOPPING_SHARE,
    Targets,
    is_for_stopping,
    newly_assigned,
    newly_assigned_by_text,
    place,
    stratum,
    text_hash,
    without_copies,
    without_texts,
)

PROJECT = 7
CLEAN: Targets = (0.0,) * 6
TOXIC: Targets = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
THREAT: Targets = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
NEVER_ASKED: Targets = (None,) * 6

TARGETS = st.sampled_from([CLEAN, TOXIC, THREAT, NEVER_ASKED])
EXAMPLES = st.dictionaries(st.integers(1, 10**9), TARGETS, max_size=120)
SHARES = st.floats(0.0, 0.9)


def assign_in_portions(examples: Mapping[int, Targets], share: float, portion: int) -> dict[int, bool]:
    """Assign as training runs do: the examples there are so far, again and again."""
    sides: dict[int, bool] = {}
    tasks = list(examples)
    for end in range(portion, len(tasks) + portion, portion):
        present = {task: examples[task] for task in tasks[:end]}
        sides |= newly_assigned(PROJECT, present, sides, share)
    return sides


@given(EXAMPLES, SHARES, st.integers(0, 9))
def test_the_choice_does_not_depend_on_who_asks_or_in_which_order(examples: dict[int, Targets], share: float, seed: int) -> None:
    shuffled = dict(sorted(examples.items(), key=lambda item: place(seed, item[0])))
    sides = newly_assigned(PROJECT, examples, {}, share)
    assert sides.keys() == examples.keys()
    assert newly_assigned(PROJECT, shuffled, {}, share) == sides


@given(EXAMPLES, SHARES, st.integers(1, 40))
def test_each_kind_of_comment_has_its_share_in_the_hold_out(examples: dict[int, Targets], share: float, portion: int) -> None:
    sides = assign_in_portions(examples, share, portion)
    for kind in {stratum(targets) for targets in examples.values()}:
        tasks = [task for task, targets in examples.items() if stratum(targets) == kind]
        slack = 2 if len(tasks) < SMALL_STRATUM else 2 + CHANCE * (share * (1 - share) * len(tasks)) ** 0.5
        assert sum(sides[task] for task in tasks) == pytest.approx(share * len(tasks), abs=slack)


@pytest.mark.parametrize("added", [1, 10, 500])
def test_examples_that_are_added_change_hardly_any_choice(added: int) -> None:
    kinds = [CLEAN] * 88 + [TOXIC] * 11 + [THREAT]
    examples = {task: kinds[task % 100] for task in range(5000)}
    more = examples | {task + 10**6: kinds[task % 100] for task in range(added)}
    before, after = (newly_assigned(PROJECT, each, {}, 0.1) for each in (examples, more))
    held_out = [task for task in examples if before[task]]
    assert len(held_out) == pytest.approx(500, abs=40)
    assert sum(after[task] for task in held_out) > 0.97 * len(held_out)
    assert sum(place(PROJECT, task) < 0.1 for task in held_out) > 0.97 * len(held_out)


@given(EXAMPLES, st.dictionaries(st.integers(1, 10**9), TARGETS, max_size=40), SHARES)
def test_who_has_a_side_gets_no_other(first: dict[int, Targets], later: dict[int, Targets], share: float) -> None:
    sides = newly_assigned(PROJECT, first, {}, share)
    assert newly_assigned(PROJECT, first | later, sides, share).keys() == later.keys() - first.keys()


@given(EXAMPLES, st.lists(TARGETS, min_size=120, max_size=120), SHARES)
def test_an_example_that_changes_its_labels_stays_on_its_side(
    examples: dict[int, Targets], labels: list[Targets], share: float
) -> None:
    sides = newly_assigned(PROJECT, examples, {}, share)
    changed = dict(zip(examples, labels, strict=False))
    assert newly_assigned(PROJECT, changed, sides, share) == {}


@given(EXAMPLES, EXAMPLES, SHARES, st.integers(1, 30))
def test_tasks_with_one_text_are_on_one_side_whenever_they_come(
    first: dict[int, Targets], later: dict[int, Targets], share: float, different: int
) -> None:
    texts = {task: task % different for task in first | later}
    sides = newly_assigned_by_text(PROJECT, first, texts, {}, {}, share)
    assert sides.keys() == first.keys()
    of_texts = {texts[task]: side for task, side in sides.items()}
    sides |= newly_assigned_by_text(PROJECT, first | later, texts, sides, {}, share)
    assert sides.keys() == (first | later).keys()
    for text in set(texts.values()):
        assert len({side for task, side in sides.items() if texts[task] == text}) == 1
    # The same once the first ones are deleted, and imported again under other numbers.
    again = {task + 10**10: targets for task, targets in first.items()}
    hashes = {task: texts[task - 10**10] for task in again}
    sides = newly_assigned_by_text(PROJECT, again, hashes, {}, of_texts, share)
    assert sides == {task: of_texts[hashes[task]] for task in again}


@given(EXAMPLES, SHARES)
def test_where_every_text_is_different_the_task_alone_decides(examples: dict[int, Targets], share: float) -> None:
    alone = {task: task for task in examples}
    assert newly_assigned_by_text(PROJECT, examples, alone, {}, {}, share) == newly_assigned(PROJECT, examples, {}, share)


@given(EXAMPLES, st.integers(1, 40))
def test_a_share_of_nothing_holds_out_nothing(examples: dict[int, Targets], portion: int) -> None:
    assert not any(assign_in_portions(examples, 0.0, portion).values())


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        (CLEAN, "clean"),
        (NEVER_ASKED, "clean"),
        (TOXIC, "toxic"),
        (THREAT, "threat"),
        ((1.0, 1.0, 1.0, 0.0, 1.0, 1.0), "identity_hate"),
        ((1.0, 1.0, 1.0, None, 1.0, 0.0), "severe_toxic"),
        ((None, 0.0, 1.0, 0.0, 1.0, 0.0), "insult"),
    ],
)
def test_a_comment_counts_to_the_rarest_of_its_labels(targets: Targets, kind: str) -> None:
    assert stratum(targets) == kind


def test_a_quarter_of_the_hold_out_tells_when_to_stop_and_the_rest_judges() -> None:
    tasks = range(20_000)
    held_out = [task for task in tasks if place(PROJECT, task) < 0.2]
    assert sum(is_for_stopping(PROJECT, task) for task in tasks) == pytest.approx(STOPPING_SHARE * len(tasks), rel=0.05)
    assert sum(is_for_stopping(PROJECT, task) for task in held_out) == pytest.approx(STOPPING_SHARE * len(held_out), rel=0.1)


def test_places_are_spread_evenly_and_differ_from_project_to_project() -> None:
    places = sorted(place(PROJECT, task) for task in range(5000))
    assert all(abs(found - rank / 5000) < 0.03 for rank, found in enumerate(places))
    assert 0 <= places[0] < places[-1] < 1
    both = sum(place(PROJECT, task) < 0.2 and place(PROJECT + 1, task) < 0.2 for task in range(5000))
    assert both == pytest.approx(0.04 * 5000, rel=0.2)


def test_a_place_is_the_same_for_ever() -> None:
    # What is held out is kept in Redis, but the order of what judges, and what stops a run, is computed anew each time.
    assert [round(place(PROJECT, task), 6) for task in (1, 2)] == [0.035067, 0.512286]
    assert round(place(PROJECT, 1, "stopping"), 6) == 0.050436


def test_of_copies_the_first_counts() -> None:
    comments = [LabelledComment(text, targets) for text, targets in (("a b", CLEAN), ("c", TOXIC), ("A  B", TOXIC), ("c", CLEAN))]
    assert without_copies(comments) == comments[:2]
    assert without_copies([]) == []


def test_a_text_is_the_same_whatever_its_case_and_white_space() -> None:
    held_out = [LabelledComment(text, CLEAN) for text in ("Good  bread, Straße", "half \ud83d")]
    same = [" good bread,\tSTRASSE\n", "good bread, straße", "HALF \ud83d"]
    others = ["Good bread", "Goodbread, Straße", "half", ""]
    comments = [LabelledComment(text, TOXIC) for text in [*same, *others]]
    assert [comment.text for comment in without_texts(comments, held_out)] == others
    assert without_texts(comments, []) == comments
    assert [text_hash(text) == text_hash("good bread, strasse") for text in [*same[:2], *others]] == [True] * 2 + [False] * 4
