"""Examples on a real Redis: what an annotation event leaves behind, in whatever order events come."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from toxicity.comments import LabelledComment
from toxicity.examples import BEGINNING, BEHIND_KEY, ExampleStore
from toxicity.label_studio import Annotation, Changes

CLEAN = (0.0,) * 6
TOXIC = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
INSULT = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
EARLY, LATE = "2026-01-01T10:00:00.000001Z", "2026-01-01T10:00:00.000002Z"


@pytest.fixture
def store(connection: redis.Redis) -> ExampleStore:
    return ExampleStore(connection)


def annotate(
    targets: tuple[float | None, ...] | None, number: int = 1, task: int = 10, at: str = EARLY, text: str = "you idiot"
) -> Changes:
    return Changes(1, annotations=(Annotation(number, task, at, text, targets),))


def examples(store: ExampleStore, project: int = 1) -> dict[int, tuple[float | None, ...]]:
    return dict(store.snapshot(project, BEGINNING).targets)


def comments(store: ExampleStore, project: int = 1) -> list[LabelledComment]:
    snapshot = store.snapshot(project, BEGINNING)
    return store.comments(project, snapshot, sorted(snapshot.targets))


def whole_redis(connection: redis.Redis) -> bytes:
    """Everything that stands in Redis."""
    connection.config_set("rdbcompression", "no")
    return b"".join(connection.dump(key) or b"" for key in connection.scan_iter())


DELETED, TASK_DELETED = Changes(1, deleted_annotations=(1,)), Changes(1, deleted_tasks=(10,))
NEWER = annotate(INSULT, at=LATE, text="newer")


@pytest.mark.parametrize(
    ("events", "changed", "left"),
    [
        pytest.param([annotate(TOXIC)], [1], [("you idiot", TOXIC)], id="an annotation is an example"),
        pytest.param([annotate(CLEAN)], [1], [("you idiot", CLEAN)], id="an empty result is all zeros"),
        pytest.param([annotate(None)], [0], [], id="Skip is none"),
        pytest.param([annotate(TOXIC)] * 2, [1, 0], [("you idiot", TOXIC)], id="the same event twice counts once"),
        pytest.param([annotate(TOXIC), NEWER], [1, 1], [("newer", INSULT)], id="an update replaces"),
        pytest.param([NEWER, annotate(TOXIC)], [1, 0], [("newer", INSULT)], id="an older revision that comes late is ignored"),
        pytest.param([annotate(TOXIC), annotate(TOXIC, at=LATE)], [1, 0], [("you idiot", TOXIC)], id="same verdict, no change"),
        pytest.param([annotate(TOXIC), annotate(TOXIC, at=LATE, text="b")], [1, 1], [("b", TOXIC)], id="a text is a change"),
        pytest.param([annotate(TOXIC), annotate(None, at=LATE)], [1, 1], [], id="Skip takes a decision back"),
        pytest.param([annotate(None), NEWER], [0, 1], [("newer", INSULT)], id="a decision after Skip counts"),
        pytest.param([annotate(TOXIC, text=""), NEWER], [1, 1], [("newer", INSULT)], id="a blank text is no deleted task"),
        pytest.param([annotate(TOXIC), DELETED, DELETED], [1, 1, 0], [], id="a deleted annotation is none"),
        pytest.param([annotate(TOXIC), DELETED, NEWER], [1, 1, 0], [], id="what was deleted stays deleted"),
        pytest.param([DELETED, NEWER], [0, 0], [], id="deleted before it was created stays deleted"),
        pytest.param([annotate(TOXIC), TASK_DELETED, annotate(INSULT, 2)], [1, 1, 0], [], id="a deleted task stays deleted"),
    ],
)
def test_what_a_row_of_events_leaves_behind(
    store: ExampleStore, connection: redis.Redis, events: list[Changes], changed: list[int], left: list[tuple[str, Any]]
) -> None:
    assert [store.apply(event) for event in events] == changed
    assert comments(store) == [LabelledComment(text, targets) for text, targets in left]
    assert connection.xlen("toxicity:{1}:events") == sum(changed)
    assert list(store.behind()) == ([1] if sum(changed) else [])


def test_deleting_without_a_project_finds_the_annotation_among_several(store: ExampleStore) -> None:
    store.apply(annotate(TOXIC))
    store.apply(Changes(2, annotations=(Annotation(2, 20, EARLY, "other", INSULT),)))
    assert store.apply(Changes(None, deleted_annotations=(1,))) == 1
    assert (examples(store, 1), examples(store, 2)) == ({}, {20: INSULT})


def test_deleting_unknown_ids_harms_nothing(store: ExampleStore) -> None:
    store.apply(annotate(TOXIC))
    assert store.apply(Changes(1, deleted_annotations=(99, 10**20))) == 0
    assert store.apply(Changes(1, deleted_tasks=(99,))) == 0
    assert store.apply(Changes(None, deleted_tasks=(99,))) == 0
    assert examples(store) == {10: TOXIC}


@pytest.mark.parametrize("project", [1, None])
def test_a_deleted_task_takes_its_example_with_it(store: ExampleStore, connection: redis.Redis, project: int | None) -> None:
    store.apply(annotate(TOXIC, text="canary"))
    store.apply(annotate(TOXIC, number=2, task=11, text="stays"))
    store.apply(Changes(2, annotations=(Annotation(3, 20, EARLY, "other project", INSULT),)))
    assert store.apply(Changes(project, deleted_tasks=(10,))) == 1
    assert (examples(store, 1), examples(store, 2)) == ({11: TOXIC}, {20: INSULT})
    assert b"canary" not in whole_redis(connection)


def test_a_deleted_project_leaves_nothing_behind(store: ExampleStore, connection: redis.Redis) -> None:
    store.apply(annotate(TOXIC, text="canary"))
    store.apply(Changes(2, annotations=(Annotation(2, 20, EARLY, "other", INSULT),)))
    store.assign(1, {10: True})
    store.assign(2, {20: True})
    assert b"canary" in whole_redis(connection)
    store.apply(Changes(1, project_deleted=True))
    assert b"canary" not in whole_redis(connection)
    assert [key for key in connection.scan_iter() if b"{1}" in key] == []
    assert (store.projects(), list(store.behind()), examples(store, 2)) == ([2], [2], {20: INSULT})
    assert (store.sides(1), store.sides(2)) == ({}, {20: True})


def test_a_task_keeps_the_side_that_it_was_first_assigned(store: ExampleStore) -> None:
    assert store.sides(1) == {}
    store.assign(1, {10: True, 11: False})
    store.assign(1, {10: False, 11: True, 12: True})
    store.assign(1, {})
    assert (store.sides(1), store.sides(2)) == ({10: True, 11: False, 12: True}, {})


def test_many_sides_are_read_back(store: ExampleStore) -> None:
    sides = {task: task % 5 == 0 for task in range(5000)}
    store.assign(1, sides)
    assert store.sides(1) == sides


@pytest.mark.parametrize("withdrawal", [annotate(None, at=LATE), Changes(1, deleted_annotations=(1,))])
def test_a_text_is_gone_once_no_annotation_decides_on_it(
    store: ExampleStore, connection: redis.Redis, withdrawal: Changes
) -> None:
    store.apply(annotate(TOXIC, text="canary"))
    store.apply(annotate(TOXIC, number=2, text="canary"))
    store.apply(Changes(1, deleted_annotations=(2,)))
    assert b"canary" in whole_redis(connection)
    store.apply(withdrawal)
    assert b"canary" not in whole_redis(connection)


@pytest.mark.parametrize(
    ("votes", "combined"),
    [
        ([TOXIC], TOXIC),
        ([TOXIC, TOXIC], TOXIC),
        ([TOXIC, CLEAN], (None, 0.0, 0.0, 0.0, 0.0, 0.0)),
        ([TOXIC, INSULT], (None, 0.0, 0.0, 0.0, None, 0.0)),
        ([TOXIC, TOXIC, CLEAN], TOXIC),
        ([TOXIC, CLEAN, CLEAN], CLEAN),
        ([TOXIC, (None,) * 6], TOXIC),
        ([(None,) * 6], (None,) * 6),
        ([(1.0, None, None, None, None, None), INSULT, INSULT], INSULT),
        ([TOXIC, (0.0, None, 1.0, None, None, None)], (None, 0.0, None, 0.0, 0.0, 0.0)),
    ],
)
def test_several_annotators_decide_label_by_label_by_majority(
    store: ExampleStore, votes: list[tuple[float | None, ...]], combined: tuple[float | None, ...]
) -> None:
    for number, targets in enumerate(votes):
        store.apply(annotate(targets, number=number))
    assert examples(store) == {10: combined}


def test_redis_scanning_an_annotation_twice_does_not_count_its_vote_twice(
    store: ExampleStore, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SCAN commands promise each element at least once, not exactly once: a hash that is being resized repeats some.
    store.apply(annotate(TOXIC, number=1))
    store.apply(annotate(CLEAN, number=2))
    entries = sorted(connection.hgetall("toxicity:{1}:annotations").items())
    monkeypatch.setattr(connection, "hscan_iter", lambda *_, **__: iter([entries[0], *entries]))
    assert examples(store) == {10: (None, 0.0, 0.0, 0.0, 0.0, 0.0)}


def test_changed_since_gives_what_came_after_the_watermark(store: ExampleStore) -> None:
    store.apply(annotate(TOXIC, number=1, task=10))
    first = store.snapshot(1, BEGINNING)
    assert first.changed == {10}
    store.apply(annotate(TOXIC, number=2, task=11))
    second = store.snapshot(1, first.watermark)
    assert second.changed == {11}
    assert second.targets.keys() == {10, 11}
    assert store.changed_since(1, BEGINNING) == {10, 11}
    assert store.changed_since(1, second.watermark) == set()


def test_a_withdrawn_example_is_nothing_to_learn_but_moves_the_watermark(store: ExampleStore) -> None:
    store.apply(annotate(TOXIC))
    learned = store.snapshot(1, BEGINNING).watermark
    store.apply(Changes(1, deleted_annotations=(1,)))
    snapshot = store.snapshot(1, learned)
    assert store.changed_since(1, learned) == set()
    assert (snapshot.changed, snapshot.targets, snapshot.watermark > learned) == (frozenset(), {}, True)


def test_a_project_is_behind_since_its_first_unlearned_event(store: ExampleStore, connection: redis.Redis) -> None:
    before = store.now()
    store.apply(annotate(TOXIC))
    assert before <= store.behind()[1] <= store.now()
    connection.zadd(BEHIND_KEY, {"1": 1000})
    store.apply(annotate(TOXIC, number=2, task=11))
    assert store.behind() == {1: 1000}


def test_caught_up_takes_the_project_off_the_list(store: ExampleStore) -> None:
    store.apply(annotate(TOXIC))
    assert store.caught_up(1, store.snapshot(1, BEGINNING).watermark) is True
    assert store.behind() == {}


def test_an_event_after_the_watermark_keeps_the_project_behind(store: ExampleStore) -> None:
    store.apply(annotate(TOXIC))
    watermark = store.snapshot(1, BEGINNING).watermark
    store.apply(annotate(TOXIC, number=2, task=11))
    assert store.caught_up(1, watermark) is False
    assert list(store.behind()) == [1]


def test_a_project_that_stays_behind_waits_anew_from_the_first_event_that_was_not_learned(
    store: ExampleStore, connection: redis.Redis
) -> None:
    store.apply(annotate(TOXIC))
    connection.zadd(BEHIND_KEY, {"1": 1000})  # long ago
    watermark = store.snapshot(1, BEGINNING).watermark
    store.apply(annotate(TOXIC, number=2, task=11))
    store.caught_up(1, watermark)
    assert store.behind()[1] >= store.now() - 5


def test_one_event_is_one_script_that_writes_annotation_event_and_request(store: ExampleStore, connection: redis.Redis) -> None:
    store.apply(annotate(TOXIC, number=7, task=70))  # Redis knows the script from here on
    connection.delete(BEHIND_KEY)
    connection.config_resetstat()
    store.apply(annotate(TOXIC))
    statistics = connection.info("commandstats")
    assert statistics["cmdstat_evalsha"]["calls"] == 1
    assert "cmdstat_multi" not in statistics
    assert connection.hkeys("toxicity:{1}:annotations") == [b"7", b"1"]
    assert connection.hget("toxicity:{1}:texts", "10") == b"you idiot"
    assert store.changed_since(1, BEGINNING) == {70, 10}
    assert list(store.behind()) == [1]


def test_a_bulk_event_is_one_change_for_each_of_its_annotations(store: ExampleStore) -> None:
    bulk = tuple(Annotation(number, 1000 + number, EARLY, f"comment {number}", TOXIC) for number in range(5000))
    assert store.apply(Changes(1, annotations=bulk)) == 5000
    assert [comment.text for comment in comments(store)] == [f"comment {number}" for number in range(5000)]


def test_twenty_threads_recording_at_once_lose_no_event(store: ExampleStore, connection: redis.Redis) -> None:
    barrier = threading.Barrier(20)

    def record(thread: int) -> int:
        barrier.wait()
        own = sum(store.apply(annotate(TOXIC, number=thread * 100 + k, task=thread * 100 + k)) for k in range(25))
        return own + store.apply(annotate(TOXIC, number=9999, task=9999))

    with ThreadPoolExecutor(20) as threads:
        changed = list(threads.map(record, range(20)))
    tasks = {thread * 100 + k for thread in range(20) for k in range(25)} | {9999}
    assert sum(changed) == 501
    assert connection.xlen("toxicity:{1}:events") == 501
    assert store.changed_since(1, BEGINNING) == tasks
    assert examples(store).keys() == tasks


@pytest.mark.parametrize(
    "text",
    ["🤬 👩‍👩‍👧", "half \ud83d", "nul \x00", "x" * 100_000, "two\nlines\r\n", "مرحبا", " padded ", "skipped"],
    ids=["emoji", "lone surrogate", "NUL", "long", "newlines", "right to left", "blanks around", "marker"],
)
def test_odd_texts_come_back_as_they_were(store: ExampleStore, text: str) -> None:
    store.apply(annotate(TOXIC, text=text))
    assert comments(store) == [LabelledComment(text, TOXIC)]


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u3000"])
def test_blank_comments_are_left_out_of_what_is_learned(store: ExampleStore, text: str) -> None:
    store.apply(annotate(TOXIC, text=text))
    store.apply(annotate(TOXIC, number=2, task=11, text="words"))
    assert comments(store) == [LabelledComment("words", TOXIC)]


def test_comments_deleted_after_the_snapshot_are_left_out(store: ExampleStore) -> None:
    store.apply(annotate(TOXIC, number=1, task=10))
    store.apply(annotate(INSULT, number=2, task=11, text="stays"))
    snapshot = store.snapshot(1, BEGINNING)
    store.apply(Changes(1, deleted_tasks=(10,)))
    assert store.comments(1, snapshot, [10, 11]) == [LabelledComment("stays", INSULT)]


def test_reading_what_changed_stops_at_exactly_so_many_and_goes_on_from_there(store: ExampleStore) -> None:
    for task in (1, 1, 2, 3, 4):
        text = f"comment {store.newest_event(1)}"  # another text each time, so that each is an event
        store.apply(Changes(1, annotations=(Annotation(task, task, "2026-01-01", text, (1.0,) + (0.0,) * 5),)))
    first = store.snapshot(1, BEGINNING, at_most=2)
    assert first.changed == {1, 2}
    assert store.snapshot(1, first.watermark, at_most=2).changed == {3, 4}


def test_a_project_with_events_after_the_watermark_is_behind_even_if_it_was_not_on_the_list(
    store: ExampleStore, connection: redis.Redis
) -> None:
    store.apply(Changes(1, annotations=(Annotation(1, 1, "2026-01-01", "comment", (0.0,) * 6),)))
    connection.delete(BEHIND_KEY)
    assert not store.caught_up(1, BEGINNING)
    assert list(store.behind()) == [1]
