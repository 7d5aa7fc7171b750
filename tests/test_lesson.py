"""What a training run learns and is judged on, over examples in a real Redis: nothing that judges is ever learned."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import redis

import worker.lesson
from toxicity.comments import LabelledComment
from toxicity.corpus import anchors_file, read_corpus
from toxicity.examples import BEGINNING, ExampleStore
from toxicity.hold_out import STOPPING_SHARE, place
from toxicity.label_studio import Annotation, Changes
from toxicity.labels import LABELS
from toxicity.settings import Settings
from worker.lesson import LEAST_ANCHORS, LEAST_REPLAY, Lesson, next_lesson

pytestmark = pytest.mark.tensorflow  # worker.lesson imports what imports it

PROJECT = 7
RUDE, KIND = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0.0,) * 6
TIED = (None,) * 6
ANCHORS = {anchor.text for anchor in read_corpus(anchors_file()).comments}
FIRST, LATER = "2026-01-01", "2026-01-02"


class Project:
    """A project's examples, and lessons from them."""

    def __init__(self, settings: Settings, connection: redis.Redis) -> None:
        self.settings = settings
        self.store = ExampleStore(connection)

    def annotate(
        self, tasks: Sequence[int], targets: tuple[float | None, ...] = RUDE, at: str = FIRST, text: str | None = None
    ) -> None:
        texts = [f"You silly sausage number {task}" if text is None else text for task in tasks]
        annotations = tuple(Annotation(task, task, at, each, targets) for task, each in zip(tasks, texts, strict=True))
        self.store.apply(Changes(PROJECT, annotations=annotations))

    def lesson(self, watermark: str = BEGINNING, attempts: int = 0, seed: int = 1, **changed: object) -> Lesson:
        return next_lesson(replace(self.settings, **changed), self.store, PROJECT, watermark, attempts, seed)  # type: ignore[arg-type] # the arguments are named in each test

    def held_out(self) -> set[int]:
        return {task for task, held_out in self.store.sides(PROJECT).items() if held_out}


@pytest.fixture
def project(settings: Settings, connection: redis.Redis) -> Project:
    return Project(settings, connection)


def tasks(comments: Sequence[LabelledComment]) -> list[int]:
    """The tasks that comments stand in; those of the project are numbered in their text, anchors are not."""
    return [int(comment.text.split()[-1]) for comment in comments if "sausage" in comment.text.lower()]


def test_a_fifth_is_held_out_and_everything_else_is_learned(project: Project) -> None:
    project.annotate(range(100))
    project.annotate(range(100, 200), KIND)
    lesson = project.lesson()
    held_out = tasks(lesson.stopping + lesson.judging)
    assert sorted(tasks(lesson.new) + held_out) == list(range(200))
    assert set(held_out) == project.held_out()
    assert len(set(held_out)) == len(held_out)
    for kind in (range(100), range(100, 200)):
        assert sum(task in kind for task in held_out) == pytest.approx(20, abs=9)  # two standard deviations
    assert len(lesson.stopping) == pytest.approx(STOPPING_SHARE * 40, abs=6)
    assert {comment.targets for comment in lesson.new} == {RUDE, KIND}
    assert lesson.watermark == project.store.newest_event(PROJECT)


def test_an_example_that_changes_stays_on_its_side_whoever_asks(project: Project) -> None:
    project.annotate(range(50))
    first = project.lesson()
    project.annotate(range(50), KIND, LATER)
    project.annotate(range(50, 60))
    second = project.lesson(first.watermark, seed=2)
    stays = set(tasks(first.judging))
    assert stays <= set(tasks(second.judging))
    assert set(tasks(first.stopping)) <= set(tasks(second.stopping))
    assert set(tasks(first.new)) <= set(tasks(second.new))
    assert {comment.targets for comment in second.judging if tasks([comment])[0] in stays} == {KIND}


def test_a_rival_run_that_assigned_sides_first_is_followed(project: Project, connection: redis.Redis) -> None:
    class Rival(ExampleStore):
        def assign(self, project: int, sides: Mapping[int, bool], text_sides: Mapping[int, bool] | None = None) -> None:
            ExampleStore(connection).assign(project, dict.fromkeys(sides, False) | {3: True})
            super().assign(project, sides, text_sides or {})

    project.store = Rival(connection)
    project.annotate(range(40))
    lesson = project.lesson()
    assert project.held_out() == {3} == set(tasks(lesson.stopping + lesson.judging))
    assert tasks(lesson.new) == [task for task in range(40) if task != 3]


def test_without_a_hold_out_everything_is_learned(project: Project) -> None:
    project.annotate(range(50))
    lesson = project.lesson(hold_out=0.0)
    assert (tasks(lesson.new), lesson.stopping, lesson.judging) == (list(range(50)), [], [])


def test_a_text_that_is_held_out_is_learned_from_no_other_task_and_no_file(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.annotate(range(100))
    first = project.lesson()
    anchor = sorted(ANCHORS)[0]
    hidden, stopping, learned = first.judging[0].text, first.stopping[0].text, first.new[0].text
    another = tasks(first.judging)[-1]
    # The same words in other cases and spaces; and an anchor and a row of the corpus as held-out examples.
    project.annotate([200], text=hidden)
    project.annotate([201], text=f" {hidden.upper()}\n")
    project.annotate([202], text=stopping.replace(" ", "  "))
    project.annotate([203], text=learned)
    project.annotate([another], at=LATER, text=anchor)
    project.store.assign(PROJECT, dict.fromkeys(range(200, 204), False))
    corpus = tmp_path / "corpus.csv"
    rows = "".join(f'"{text}",1,0,0,0,0,0\n' for text in (hidden, stopping, learned, "A silly sausage in the corpus 300"))
    corpus.write_text(f"comment_text,{','.join(LABELS)}\n{rows}", encoding="utf-8")

    for watermark in (BEGINNING, first.watermark):
        lesson = project.lesson(watermark, corpus=str(corpus))
        secret = {" ".join(comment.text.lower().split()) for comment in lesson.judging + lesson.stopping}
        assert {" ".join(text.lower().split()) for text in (anchor, hidden, stopping)} <= secret
        for comment in lesson.new + lesson.replayed:
            assert " ".join(comment.text.lower().split()) not in secret
    replayed = [comment.text for comment in lesson.replayed]
    assert "A silly sausage in the corpus 300" in replayed
    assert learned in [comment.text for comment in lesson.new]


def test_the_text_of_a_learned_example_is_not_held_out_in_another_task(project: Project) -> None:
    project.annotate(range(60))
    first = project.lesson()
    texts = {task: f"You silly sausage number {task}" for task in range(60)}
    for task in range(60):
        project.annotate([1000 + task], text=texts[task].upper())
    project.lesson(first.watermark)
    assert project.held_out() == {twin for task in project.held_out() if task < 60 for twin in (task, 1000 + task)}
    assert 0 < len(project.held_out()) < 60


def test_tasks_that_are_deleted_and_imported_again_stay_on_their_side(project: Project) -> None:
    project.annotate(range(60))
    first = project.lesson()
    held_out = {comment.text for comment in first.stopping + first.judging}
    project.store.apply(Changes(PROJECT, deleted_tasks=tuple(range(60))))
    for task in range(60):
        project.annotate([1000 + task], text=f"You silly sausage number {task}")
    second = project.lesson(first.watermark)
    assert {comment.text for comment in second.stopping + second.judging} == held_out
    assert len(second.new) == 60 - len(held_out)


def test_copies_of_a_held_out_text_judge_once(project: Project) -> None:
    project.annotate(range(100), text="the same loaf")
    project.store.assign(PROJECT, dict.fromkeys(range(100), True))
    lesson = project.lesson()
    assert len(lesson.stopping + lesson.judging) == 1


def test_what_is_held_out_beyond_what_judges_is_not_learned_elsewhere_either(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.lesson, "MOST_HELD_OUT", 3)
    project.annotate(range(100))
    project.lesson()
    twins = sorted(project.held_out())
    for task in twins:
        project.annotate([1000 + task], text=f"You silly SAUSAGE number {task}")
        project.store.assign(PROJECT, {1000 + task: False})
    assert len(twins) > 10
    assert not set(tasks(project.lesson().new)) & set(twins)


def test_new_ones_are_beside_older_ones_and_anchors_that_are_at_least_so_many(project: Project) -> None:
    project.annotate(range(10))
    first = project.lesson(hold_out=0.0)
    assert tasks(first.new) == list(range(10))
    assert tasks(first.replayed) == []
    assert (len(first.replayed), {comment.text for comment in first.replayed} <= ANCHORS) == (LEAST_REPLAY, True)
    project.annotate([10, 11])
    second = project.lesson(first.watermark, hold_out=0.0)
    assert tasks(second.new) == [10, 11]
    assert tasks(second.replayed) == list(range(10))
    assert len(second.replayed) == LEAST_REPLAY
    assert project.lesson(second.watermark, hold_out=0.0).new == []


def test_replay_is_a_multiple_of_what_is_new_and_anchors_never_run_out(project: Project) -> None:
    project.annotate(range(400), KIND)
    first = project.lesson(hold_out=0.0)
    project.annotate(range(400, 430))
    for replay, older in ((0, LEAST_REPLAY), (3, 90), (10, 300)):
        lesson = project.lesson(first.watermark, hold_out=0.0, replay=replay)
        assert len(tasks(lesson.replayed)) == len(set(tasks(lesson.replayed))) == older
        assert len(lesson.replayed) == older + LEAST_ANCHORS
        assert not set(tasks(lesson.replayed)) & set(tasks(lesson.new))


def test_replay_is_drawn_anew_for_each_version_and_the_same_for_the_same_one(project: Project) -> None:
    project.annotate(range(200))
    watermark = project.lesson().watermark
    project.annotate([200, 201, 202])
    again = [project.lesson(watermark, seed=seed) for seed in (5, 5, 6)]
    assert again[0] == again[1]
    assert again[0].replayed != again[2].replayed
    assert again[0].judging == again[2].judging


def test_held_out_ones_are_never_replayed(project: Project) -> None:
    project.annotate(range(60))
    watermark = project.lesson().watermark
    project.annotate([60])
    project.store.assign(PROJECT, {60: False})
    replayed = tasks(project.lesson(watermark, replay=1000).replayed)
    assert set(replayed) == set(range(60)) - project.held_out()


def test_a_corpus_makes_up_for_older_examples_that_there_are_not(project: Project, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.csv"
    rows = "".join(f"The corpus has loaf {row},{int(row < 50)},0,0,{int(row < 5)},0,0\n" for row in range(500))
    corpus.write_text(f"comment_text,{','.join(LABELS)}\n{rows}", encoding="utf-8")
    project.annotate(range(10))
    lesson = project.lesson(hold_out=0.0, corpus=str(corpus), replay=9)
    replayed = [comment.text for comment in lesson.replayed]
    from_corpus = [text for text in replayed if "loaf" in text]
    assert len(from_corpus) == 9 * 10 + LEAST_REPLAY
    assert len(replayed) == len(from_corpus) + LEAST_ANCHORS
    assert {f"The corpus has loaf {row}" for row in range(5)} <= set(from_corpus)  # threats first: they are few


def test_a_project_far_behind_learns_the_oldest_first_and_more_after_each_rejection(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.lesson, "MOST_EXAMPLES", 4)
    for task in range(20):
        project.annotate([task])
    lessons = [project.lesson(hold_out=0.0, attempts=attempts) for attempts in range(3)]
    assert [tasks(lesson.new) for lesson in lessons] == [list(range(4)), list(range(8)), list(range(12))]
    assert tasks(project.lesson(lessons[0].watermark, hold_out=0.0).new) == [4, 5, 6, 7]


@pytest.mark.parametrize("useless", ["blank", "tied", "held out", "held out elsewhere", "deleted"])
def test_what_is_nothing_to_learn_does_not_hold_up_what_comes_after(
    useless: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.lesson, "MOST_EXAMPLES", 3)
    project.annotate([1], text="a held-out loaf")
    project.annotate(range(10, 20), TIED if useless == "tied" else RUDE, text=useless_text(useless))
    project.annotate([20])
    project.store.assign(PROJECT, {1: True, **dict.fromkeys(range(10, 20), useless == "held out"), 20: False})
    if useless == "deleted":
        project.store.apply(Changes(PROJECT, deleted_tasks=tuple(range(10, 20))))
    lesson = project.lesson()
    assert (tasks(lesson.new), "a held-out loaf" in {comment.text for comment in lesson.judging + lesson.stopping}) == (
        [20],
        True,
    )
    assert project.lesson(lesson.watermark).new == []


def useless_text(useless: str) -> str | None:
    return {"blank": " \n ", "held out elsewhere": "A held-out  LOAF"}.get(useless)


def test_where_all_that_is_new_is_useless_the_watermark_moves_to_the_end(project: Project) -> None:
    project.annotate(range(10), text="  ")
    project.annotate(range(10, 20), TIED)
    lesson = project.lesson()
    assert (lesson.new, lesson.watermark) == ([], project.store.newest_event(PROJECT))


def test_so_many_held_out_ones_judge_at_most_and_the_same_in_every_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.lesson, "MOST_HELD_OUT", 10)
    project.annotate(range(200))
    first = project.lesson()
    project.annotate([200])
    second = project.lesson(first.watermark)
    assert len(project.held_out()) > 30
    judged = set(tasks(first.stopping + first.judging))
    assert judged == set(sorted(project.held_out() - {200}, key=lambda task: place(PROJECT, task))[:10])
    assert len(judged & set(tasks(second.stopping + second.judging))) >= 9
    assert not project.held_out() & set(tasks(first.new))


def test_labels_that_were_not_asked_for_and_odd_texts_come_through(project: Project) -> None:
    partly = (1.0, None, 0.0, None, None, 1.0)
    project.annotate([1], partly, text="half \ud83d and 🥖")
    project.annotate([2], KIND, text="nul \x00")
    lesson = project.lesson(hold_out=0.0)
    assert lesson.new == [LabelledComment("half \ud83d and 🥖", partly), LabelledComment("nul \x00", KIND)]
    assert np.isnan(np.array([comment.targets for comment in lesson.new], np.float64)).sum() == 3


def test_a_corpus_that_cannot_be_read_is_left_out_and_the_annotations_are_learned(
    project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = tmp_path / "corpus.csv"
    corpus.write_text("comment_text,toxic\nThe bread is fine.,0\n", encoding="utf-8")
    project.annotate(range(10))
    lesson = project.lesson(hold_out=0.0, corpus=str(corpus))
    assert len(lesson.new) == 10
    assert f"CORPUS is left out: {corpus}, line 1: no column severe_toxic" in caplog.text
