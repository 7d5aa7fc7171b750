"""The training job on a real Redis: what is learned, judged and published, and what stays as it was when a run fails."""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import redis

import toxicity.verdict
import worker.lesson
import worker.project_lock
import worker.training
from tests.conftest import ACCEPTED, CARDS, REJECTED, manifest_of, publish, save_tiny_encoder
from toxicity.calibration import IDENTITY
from toxicity.classifier import Classifier, build_classifier
from toxicity.comments import LabelledComment
from toxicity.encoder import embedded_saved_model
from toxicity.examples import BEGINNING, ExampleStore
from toxicity.fine_tuning import CORPUS_PLAN, Trained, fine_tune
from toxicity.hold_out import text_hash
from toxicity.label_studio import Annotation, Changes
from toxicity.labels import DEFAULT_THRESHOLDS, LABELS
from toxicity.loading import golden_outputs, load_version
from toxicity.manifest import Verdict
from toxicity.settings import Settings
from toxicity.training_queue import TrainingQueue
from toxicity.versions import (
    BASE_PROJECT,
    CARD_FILE,
    CARD_JSON_FILE,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    LoadedVersion,
    ProjectVersions,
    VersionError,
)
from worker.project_lock import ProjectLock
from worker.sweeper import Sweeper
from worker.training import learn_and_publish

pytestmark = pytest.mark.tensorflow

PROJECT = 7
CANARY = "quokka"
RUDE, KIND = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0.0,) * 6
UNCHANGED = Trained(loss=0.1, epochs=1, watched=())
FAST = 0.1  # a learning rate at which one epoch is enough to unlearn


def spoil(classifier: Any, *arguments: Any) -> Trained:
    """Stands in for fine_tune, and leaves weights that are sure to be rejected."""
    classifier.set_weights({name: np.full_like(value, np.nan) for name, value in classifier.weights().items()})
    return UNCHANGED


class Project:
    """A project's settings, examples and versions, and a training run over them."""

    def __init__(self, settings: Settings, connection: redis.Redis) -> None:
        self.settings = settings
        self.store = ExampleStore(connection)
        self.versions = ProjectVersions(settings.models_dir(), PROJECT)

    def annotate(self, tasks: Sequence[int], targets: tuple[float | None, ...] = RUDE, at: str = "2026-01-01") -> str:
        """Record an annotation of each task; return the watermark after them."""
        annotations = tuple(Annotation(task, task, at, f"You {CANARY} number {task}", targets) for task in tasks)
        assert self.store.apply(Changes(PROJECT, annotations=annotations)) == len(tasks)
        return self.store.snapshot(PROJECT, BEGINNING).watermark

    def run(self, lock: ProjectLock | None = None, **changed: Any) -> dict[str, Any]:
        return learn_and_publish(replace(self.settings, **changed), self.store, PROJECT, lock)

    def is_behind(self) -> bool:
        return PROJECT in self.store.behind()


@pytest.fixture
def tiny_settings(redis_settings: Settings, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(toxicity.verdict, "RESAMPLES", 10)  # the many are tested where judging is
    return replace(redis_settings, encoder=str(tiny_encoder), train_epochs=1, max_length=32)


@pytest.fixture
def project(tiny_settings: Settings, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that holds nothing out, and whose candidates are accepted however little a network of few numbers learns."""
    monkeypatch.setattr(toxicity.verdict, "AUC_MARGIN", 1.0)
    monkeypatch.setattr(toxicity.verdict, "F1_MARGIN", 1.0)
    monkeypatch.setattr(toxicity.verdict, "COLLAPSED_AUC", 0.0)
    return Project(replace(tiny_settings, hold_out=0.0), connection)


class Learned:
    """Stands before fine_tune and notes what it was given; then trains, fails, or lets something happen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.comments: list[LabelledComment] = []
        self.then: Any = fine_tune
        monkeypatch.setattr(worker.training, "fine_tune", self)

    def __call__(self, classifier: Any, comments: list[LabelledComment], *arguments: Any) -> Trained:
        self.comments = comments
        trained: Trained = self.then(classifier, comments, *arguments)
        return trained

    def tasks(self) -> list[int]:
        return [int(comment.text.split()[-1]) for comment in self.comments if CANARY in comment.text]  # without anchors


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> Learned:
    return Learned(monkeypatch)


def test_the_embedded_classifier_learns_from_its_starter_and_publishes(
    redis_settings: Settings, connection: redis.Redis, shared_data_dir: Path
) -> None:
    redis_settings.data_dir.mkdir()
    (redis_settings.data_dir / "encoders").symlink_to(embedded_saved_model(shared_data_dir).parent)
    project = Project(replace(redis_settings, train_epochs=1, max_length=32, hold_out=0.0), connection)
    watermark = project.annotate(range(4), (0.0, 0.0, 0.0, 1.0, 0.0, None))  # against all that the anchors say of threats
    result = project.run()
    assert (result["published"], result["examples"], result["new"]) == ("v1", 4 + 64, 4)
    manifest = project.versions.manifest(1)
    assert (manifest.number, manifest.parent, manifest.watermark, manifest.labels) == (1, 0, watermark, LABELS)
    assert (manifest.name, manifest.parent_name, manifest.encoder) == ("v1", "v0", "embedded")
    assert (manifest.verdict.accepted, manifest.verdict.judged_on, manifest.verdict.comments) == (True, "reference", 120)
    assert manifest.measures["training_loss"] == result["loss"]
    assert 0.8 < manifest.measures["mean_roc_auc"] <= 1
    comments, threat = [f"You {CANARY} number 1"], LABELS.index("threat")
    before, after = (load_version(project.settings, project.versions, number).predict(comments) for number in (0, 1))
    assert after[0, threat] > before[0, threat]


def test_what_was_learned_is_new_no_more_and_is_not_learned_twice(project: Project, learned: Learned) -> None:
    watermark = project.annotate(range(4))
    assert project.is_behind()
    assert project.run()["published"] == "v1"
    assert sorted(learned.tasks()) == [0, 1, 2, 3]
    assert project.versions.current() == 1
    assert project.versions.manifest(1).watermark == watermark
    assert project.store.changed_since(PROJECT, watermark) == set()
    assert not project.is_behind()
    assert project.run() == {"published": None, "live": "v1"}
    assert project.versions.numbers() == [1]


def test_a_project_without_examples_publishes_nothing(project: Project) -> None:
    assert project.run() == {"published": None, "live": "v0"}
    assert project.versions.numbers() == []


def test_the_next_version_starts_from_the_live_one_and_replays_the_older_examples(project: Project, learned: Learned) -> None:
    project.annotate(range(4))
    project.run()
    start = cast(Classifier, load_version(project.settings, project.versions, 1).classifier).weights()
    project.annotate([4])
    given = {}

    def note(classifier: Any, *arguments: Any) -> Trained:
        given.update(classifier.weights())
        return fine_tune(classifier, *arguments)

    learned.then = note
    result = project.run()
    assert (result["published"], result["examples"], result["new"]) == ("v2", 4 + 60 + 1, 1)
    assert sorted(learned.tasks()) == [0, 1, 2, 3, 4]
    assert project.versions.manifest(2).parent == 1
    assert project.versions.manifest(2).training["from_the_beginning"] is False
    for name, value in start.items():
        np.testing.assert_array_equal(given[name], value)


def test_replay_is_a_share_of_the_older_examples(project: Project, learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.lesson, "LEAST_REPLAY", 2)
    project.annotate(range(20))
    project.run()
    project.annotate([20, 21])
    project.run(replay=3)
    assert len(learned.tasks()) == len(set(learned.tasks())) == 2 + 3 * 2
    assert {20, 21} < set(learned.tasks())


def test_a_changed_annotation_is_new(project: Project, learned: Learned) -> None:
    project.annotate(range(4))
    project.run()
    project.annotate([2], KIND, at="2026-01-02")
    result = project.run()
    assert (result["published"], result["new"]) == ("v2", 1)
    given = [comment.targets for comment in learned.comments if CANARY in comment.text]
    targets = dict(zip(learned.tasks(), given, strict=True))
    assert targets == {0: RUDE, 1: RUDE, 2: KIND, 3: RUDE}


def test_an_annotation_that_comes_during_a_run_is_left_for_the_next(project: Project, learned: Learned) -> None:
    watermark = project.annotate(range(4))

    def meanwhile(*arguments: Any) -> Trained:
        project.annotate([4])
        return fine_tune(*arguments)

    learned.then = meanwhile
    project.run()
    assert project.versions.manifest(1).watermark == watermark
    assert project.store.changed_since(PROJECT, watermark) == {4}
    assert project.is_behind()


def test_a_run_that_fails_leaves_the_live_version_and_the_examples_as_they_were(project: Project, learned: Learned) -> None:
    project.annotate(range(4))
    project.run()
    watermark = project.versions.manifest(1).watermark
    project.annotate([4])
    before = project.store.snapshot(PROJECT, watermark)

    def fail(*arguments: Any) -> Trained:
        raise MemoryError

    learned.then = fail
    with pytest.raises(MemoryError):
        project.run()
    assert (project.versions.current(), project.versions.numbers()) == (1, [1])
    assert project.store.snapshot(PROJECT, watermark) == before
    assert project.is_behind()


def test_weights_that_became_no_number_are_kept_and_never_serve(project: Project, learned: Learned) -> None:
    watermark = project.annotate(range(4))

    learned.then = spoil
    result = project.run()
    assert (result["published"], result["rejected"], result["live"]) == (None, "v1", "v0")
    assert result["reasons"].startswith("720 of its probabilities are no numbers")
    assert (project.versions.numbers(), project.versions.current()) == ([1], 0)
    manifest = project.versions.manifest(1)
    assert (manifest.verdict.accepted, manifest.golden_outputs, manifest.watermark) == (False, (), watermark)
    assert manifest.measures == {"training_loss": 0.1}
    project.versions.make_current(1)  # and be it by hand
    with pytest.raises(VersionError, match="are no numbers"):
        load_version(project.settings, project.versions, 1)


def rival_publishes(project: Project, verdict: Verdict) -> None:
    manifest = manifest_of(1, watermark="9-9", verdict=verdict)
    cards = CARDS | {CARD_FILE: "# the rival's card"}
    project.versions.publish(manifest, {"rival": np.zeros(3, np.float32)}, cards)


@pytest.mark.parametrize("moment", ["fine_tune", "model_cards"])
def test_a_rival_that_publishes_during_the_run_wins(moment: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.annotate(range(4))
    original = getattr(worker.training, moment)

    def meanwhile(*arguments: Any) -> Any:
        rival_publishes(project, ACCEPTED)
        return original(*arguments)

    monkeypatch.setattr(worker.training, moment, meanwhile)
    assert project.run() == {"published": None, "live": "v1"}
    assert (project.versions.current(), project.versions.numbers()) == (1, [1])
    assert (project.versions.folder(1) / CARD_FILE).read_text() == "# the rival's card"
    assert project.is_behind()


def test_a_rival_that_is_rejected_during_the_run_takes_its_number_and_the_next_run_goes_on(
    project: Project, learned: Learned
) -> None:
    project.annotate(range(4))

    def meanwhile(*arguments: Any) -> Trained:
        rival_publishes(project, REJECTED)
        return fine_tune(*arguments)

    learned.then = meanwhile
    with pytest.raises(VersionError, match="Version 1 of project 7 was published by another run"):
        project.run()
    assert (project.versions.current(), project.versions.numbers()) == (0, [1])
    assert project.is_behind()
    learned.then = fine_tune
    assert project.run()["published"] == "v2"


@pytest.mark.parametrize("moment", ["load_version", "fine_tune", "model_cards"])
def test_a_rollback_during_the_run_counts(moment: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.annotate(range(4))
    project.run()
    project.annotate([4])
    original = getattr(worker.training, moment)

    def meanwhile(*arguments: Any) -> Any:
        result = original(*arguments)
        project.versions.make_current(0)
        return result

    monkeypatch.setattr(worker.training, moment, meanwhile)
    assert project.run() == {"published": None, "live": "v0"}
    assert (project.versions.current(), project.versions.numbers()) == (0, [1])
    assert project.is_behind()


def test_a_base_that_is_published_during_the_first_run_counts(project: Project, learned: Learned) -> None:
    project.annotate(range(4))
    base = ProjectVersions(project.settings.models_dir(), BASE_PROJECT)

    def publish_base(classifier: Any, *arguments: Any) -> Trained:
        publish(base, 1)
        return UNCHANGED

    learned.then = publish_base
    assert project.run() == {"published": None, "live": "base-v1"}  # it was judged against v0
    assert project.versions.numbers() == []
    assert project.is_behind()


def test_a_damaged_manifest_beside_the_line_in_service_does_not_end_training(project: Project, learned: Learned) -> None:
    learned.then = spoil
    project.annotate(range(4))
    assert project.run()["rejected"] == "v1"
    (project.versions.folder(1) / MANIFEST_FILE).write_text("{")
    learned.then = fine_tune
    assert project.run()["published"] == "v2"


def test_a_run_that_lost_its_lock_publishes_nothing(
    project: Project, learned: Learned, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.project_lock, "LOCK_SECONDS", 0.4)
    project.annotate(range(4))

    def lose_the_lock(*arguments: Any) -> Trained:
        connection.delete(f"toxicity:{{{PROJECT}}}:training")
        time.sleep(0.4)
        return UNCHANGED

    learned.then = lose_the_lock
    with ProjectLock(connection, PROJECT) as lock, pytest.raises(RuntimeError, match="taken over by another run"):
        project.run(lock)
    assert project.versions.numbers() == []
    assert project.is_behind()


def test_a_change_of_encoder_starts_anew_with_every_example(project: Project, learned: Learned, tmp_path: Path) -> None:
    project.annotate(range(4))
    project.run()
    other = save_tiny_encoder(tmp_path / "cased", lower_case=False)
    project.annotate([4])
    result = project.run(encoder=str(other))
    assert (result["published"], result["new"]) == ("v2", 5)
    manifest = project.versions.manifest(2)
    assert (manifest.parent, manifest.encoder, project.versions.current()) == (0, str(other), 2)
    assert manifest.training["from_the_beginning"] is True


def test_no_file_of_a_version_holds_a_comment(project: Project) -> None:
    project.annotate(range(4))
    result = project.run()
    files = {path.name: path.read_bytes() for path in project.versions.folder(1).iterdir()}
    assert files.keys() == {WEIGHTS_FILE, MANIFEST_FILE, CARD_FILE, CARD_JSON_FILE}
    assert not [name for name, content in files.items() if CANARY.encode() in content]
    card = files[CARD_FILE].decode()
    assert "# v1 of project 7" in card
    assert "Learned 4 new or changed examples of the project, beside 64 replayed ones" in card
    assert CANARY not in repr(result)


def test_only_the_newest_versions_are_kept(project: Project) -> None:
    for task in range(4):
        project.annotate([task])
        project.run(keep_versions=2)
    assert (project.versions.numbers(), project.versions.current()) == ([3, 4], 4)


def test_a_project_far_behind_is_learned_in_several_runs_the_oldest_first(
    project: Project, learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.lesson, "MOST_EXAMPLES", 3)
    project.annotate(range(5))
    assert project.run()["new"] == 3
    assert learned.tasks()[:3] == [0, 1, 2]
    assert project.is_behind()
    assert project.run()["new"] == 2
    assert learned.tasks()[:2] == [3, 4]
    assert not project.is_behind()


def test_where_the_live_version_is_damaged_training_goes_on_from_the_one_before(project: Project, learned: Learned) -> None:
    for first in (0, 4):
        project.annotate(range(first, first + 4))
        project.run()
    (project.versions.folder(2) / "weights.safetensors").write_bytes(b"damaged")
    project.annotate([8])
    assert project.run()["published"] == "v3"
    assert project.versions.manifest(3).parent == 1
    assert set(range(4, 9)) <= set(learned.tasks())


def ticks(version: LoadedVersion, comments: list[str]) -> npt.NDArray[np.bool_]:
    return version.predict(comments) >= np.array(version.thresholds, np.float32)


def test_runs_of_clean_comments_alone_do_not_untick_what_is_plainly_toxic(
    redis_settings: Settings, connection: redis.Redis, shared_data_dir: Path
) -> None:
    redis_settings.data_dir.mkdir()
    (redis_settings.data_dir / "encoders").symlink_to(embedded_saved_model(shared_data_dir).parent)
    project = Project(replace(redis_settings, max_length=32), connection)
    comments = ["Next week I am going to murder you.", "You are a stupid asshole.", "Fuck this shit and fuck you."]
    threat, obscene = LABELS.index("threat"), LABELS.index("obscene")
    before = load_version(project.settings, project.versions, 0)
    for run in range(3):
        tasks = range(16 * run, 16 * run + 16)
        clean = tuple(Annotation(task, task, "2026-01-01", f"Thank you for section {task}.", KIND) for task in tasks)
        project.store.apply(Changes(PROJECT, annotations=clean))
        assert project.run()["published"] == f"v{run + 1}"
    after = load_version(project.settings, project.versions, 3)
    assert after.thresholds == before.thresholds  # clean comments choose none
    assert after.calibration == IDENTITY  # what it started from is in its head
    for version in (before, after):
        ticked = ticks(version, comments)
        assert ticked[0, threat]
        assert ticked[1:, [0, obscene]].all()


def test_a_take_over_that_fails_is_told_and_the_rest_is_learned(project: Project, connection: redis.Redis) -> None:
    settings = replace(project.settings, label_studio_url="http://127.0.0.1:9", label_studio_api_key="no.such.token")
    TrainingQueue(connection, settings).request_take_over(PROJECT)
    told = worker.training._take_over(settings, connection, PROJECT)
    assert told["take_over"].startswith("failed: Label Studio at http://127.0.0.1:9 did not answer")
    assert TrainingQueue(connection, settings).awaiting_take_over() == []


def test_pages_of_blank_comments_do_not_hold_up_what_comes_after(
    project: Project, learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.lesson, "MOST_EXAMPLES", 3)
    blank = tuple(Annotation(task, task, "2026-01-01", "  ", RUDE) for task in range(100, 107))
    project.store.apply(Changes(PROJECT, annotations=blank))
    project.annotate([1, 2])
    assert project.run()["new"] == 2
    assert project.run() == {"published": None, "live": "v1"}
    assert not project.is_behind()


class LetterProject(Project):
    """A project of many tasks, in which what is rude is told from what is kind by its letters; half of it is held out."""

    TASKS = range(200)

    def __init__(self, settings: Settings, connection: redis.Redis) -> None:
        super().__init__(replace(settings, hold_out=0.5, train_epochs=8, learning_rate=1e-2), connection)

    @staticmethod
    def text(task: int) -> str:
        """Return a text of its own for each task: its number in letters among rude or kind ones."""
        number = "".join("bcdfghjklm"[int(digit)] for digit in str(task))
        return f"{'wzz zwz zz' if task % 2 else 'aea eea aa'} {number}"

    def decide(self, tasks: Sequence[int], at: str = "2026-01-01", upside_down: bool = False) -> str:
        """Record a right (or wrong) annotation of each task; return the watermark after them."""
        annotations = tuple(
            Annotation(task, task, at, self.text(task), RUDE if (task % 2 == 1) is not upside_down else KIND) for task in tasks
        )
        self.store.apply(Changes(PROJECT, annotations=annotations))
        return self.store.snapshot(PROJECT, BEGINNING).watermark

    def held_out(self) -> set[int]:
        return {task for task, side in self.store.sides(PROJECT).items() if side}

    def mislead(self) -> tuple[str, list[int]]:
        """Turn upside down what is not held out, so that learning it makes a version worse; return watermark and tasks."""
        tasks = [task for task in self.TASKS if task not in self.held_out()]
        return self.decide(tasks, "2026-01-02", upside_down=True), tasks


@pytest.fixture
def letters(tiny_settings: Settings, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> LetterProject:
    """A project with a first version that has learned to tell its letters apart."""
    monkeypatch.setattr(worker.training, "CORPUS_PLAN", replace(CORPUS_PLAN, learning_rate=1e-2))
    letters = LetterProject(tiny_settings, connection)
    letters.decide(letters.TASKS)
    assert letters.run()["published"] == "v1"
    return letters


def test_a_version_is_judged_on_what_is_held_out_and_gets_its_thresholds_from_there(letters: LetterProject) -> None:
    manifest = letters.versions.manifest(1)
    held_out, training = len(letters.held_out()), manifest.training
    assert 90 <= held_out <= 110
    assert (training["held_out"], training["new_examples"]) == (held_out, 200 - held_out)
    assert (manifest.verdict.accepted, manifest.verdict.judged_on) == (True, "hold-out")
    assert 30 <= manifest.verdict.comments == manifest.measures["comments"] < held_out  # the others told when to stop
    assert manifest.verdict.reasons == ("not worse than v0",)
    assert manifest.measures["toxic.roc_auc"] > 0.9
    assert manifest.thresholds[0] != DEFAULT_THRESHOLDS[0]
    assert manifest.thresholds[3] == DEFAULT_THRESHOLDS[3]  # no threat is among them to choose on
    live = load_version(letters.settings, letters.versions, 1)
    assert (live.thresholds, live.calibration) == (manifest.thresholds, manifest.calibration)


def test_a_run_that_makes_it_worse_stops_early_and_is_rejected_and_kept(
    letters: LetterProject, connection: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pointer = (letters.versions.root / "current").read_bytes()
    watermark, tasks = letters.mislead()
    assert letters.is_behind()
    result = letters.run(learning_rate=FAST)
    assert (result["published"], result["rejected"], result["live"], result["new"]) == (None, "v2", "v1", len(tasks))
    assert " collapsed: its ROC AUC is 0.0" in result["reasons"]
    assert (letters.versions.numbers(), letters.versions.current(), letters.versions.best(1)) == ([1, 2], 1, 1)
    assert (letters.versions.root / "current").read_bytes() == pointer
    manifest = letters.versions.manifest(2)
    assert (manifest.verdict.accepted, manifest.parent, manifest.watermark) == (False, 1, watermark)
    assert manifest.best == 1
    assert 1 <= manifest.training["epochs"] < manifest.training["epochs_planned"] == 8
    assert re.search("v2 rejected, v1 stays: [a-z]+ collapsed", caplog.text)
    assert letters.text(1) not in caplog.text
    assert letters.text(1) not in (letters.versions.folder(2) / CARD_FILE).read_text()
    assert load_version(letters.settings, letters.versions, 2).name == "v2"  # kept whole


def test_what_was_learned_in_vain_is_not_tried_again_before_more_comes_and_then_from_the_live_version_on(
    letters: LetterProject, connection: redis.Redis, learned: Learned
) -> None:
    sweeper = Sweeper(connection, replace(letters.settings, train_after=1))
    watermark, tasks = letters.mislead()
    assert letters.run(learning_rate=FAST)["rejected"] == "v2"
    assert not letters.is_behind()
    assert letters.store.changed_since(PROJECT, watermark) == set()
    assert (sweeper.sweep(), TrainingQueue(connection, letters.settings).queue.get_job_ids()) == ([], [])
    newest = letters.decide(tasks, "2026-01-03")  # somebody mends it
    assert sweeper.sweep() == [PROJECT]
    result = letters.run()
    assert (result["published"], result["new"]) == ("v3", len(tasks))
    manifest = letters.versions.manifest(3)
    assert (manifest.parent, manifest.watermark, letters.versions.current()) == (1, newest, 3)
    assert sweeper.sweep() == []


def test_after_a_rejection_the_next_run_starts_from_the_live_versions_watermark(project: Project, learned: Learned) -> None:
    project.annotate(range(4))
    project.run()
    project.annotate([4, 5])

    learned.then = spoil
    assert (project.run()["rejected"], project.versions.current()) == ("v2", 1)
    project.annotate([6])
    learned.then = fine_tune
    result = project.run()
    assert (result["published"], result["new"]) == ("v3", 3)
    assert learned.tasks()[:3] == [4, 5, 6]
    assert (project.versions.manifest(3).parent, project.versions.current()) == (1, 3)


def test_a_lesson_that_was_rejected_is_longer_the_next_time(
    project: Project, learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.lesson, "MOST_EXAMPLES", 3)
    learned.then = spoil
    project.annotate(range(8))
    taken = []
    for _ in range(3):
        result = project.run()
        taken.append((result["rejected"], result["new"], project.is_behind()))
    assert taken == [("v1", 3, True), ("v2", 6, True), ("v3", 8, False)]
    assert project.versions.current() == 0


def test_what_is_held_out_is_never_learned_whatever_becomes_of_it(
    tiny_settings: Settings, connection: redis.Redis, learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.lesson, "LEAST_REPLAY", 400)  # all that is older
    learned.then = lambda *arguments: UNCHANGED
    letters = LetterProject(tiny_settings, connection)
    for first in range(0, 60, 20):
        letters.decide(range(first, first + 20))
        letters.run()
        held_out = letters.held_out()
        texts = {comment.text for comment in learned.comments}
        assert {task for task in range(first + 20) if letters.text(task) in texts} == set(range(first + 20)) - held_out
    letters.decide(sorted(held_out), "2026-01-02", upside_down=True)
    assert letters.run()["published"] is None  # nothing is new to learn
    assert not letters.is_behind()
    assert letters.held_out() == held_out


def test_a_text_that_is_held_out_is_not_learned_from_another_task_or_file(
    tiny_settings: Settings, connection: redis.Redis, learned: Learned, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.csv"
    corpus.write_text(",".join(["comment_text", *LABELS]) + "\nzzz www,1,0,0,0,0,0\naaa eee,0,0,0,0,0,0\n")
    letters = LetterProject(replace(tiny_settings, corpus=str(corpus)), connection)
    learned.then = lambda *arguments: UNCHANGED
    letters.decide(range(40))
    letters.run()
    hidden = {letters.text(task) for task in letters.held_out()}
    assert len(hidden) >= 15
    assert hidden.isdisjoint(comment.text for comment in learned.comments)
    assert {"zzz www", "aaa eee"} <= {comment.text for comment in learned.comments}

    again = [f"  {text.upper()}\n" for text in sorted(hidden)]
    with corpus.open("a") as opened:
        opened.writelines(f'"{text}",1,0,0,0,0,0\n' for text in again)
    copies = tuple(Annotation(1000 + k, 1000 + k, "2026-01-02", text, RUDE) for k, text in enumerate(again))
    letters.store.apply(Changes(PROJECT, annotations=copies))
    letters.decide(range(40, 80))
    letters.run()
    folded = {" ".join(comment.text.split()).casefold() for comment in learned.comments}
    hidden = {letters.text(task) for task in letters.held_out() if task < 1000}
    assert len(hidden) >= 35
    assert hidden.isdisjoint(folded)
    assert "zzz www" in folded


def test_pages_of_texts_that_are_held_out_do_not_hold_up_what_comes_after(
    tiny_settings: Settings, connection: redis.Redis, learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.lesson, "MOST_EXAMPLES", 4)
    learned.then = lambda *arguments: UNCHANGED
    letters = LetterProject(tiny_settings, connection)
    flood = tuple(Annotation(task, task, "2026-01-01", "buy my cheap lamps", RUDE) for task in range(1000, 1020))
    letters.store.apply(Changes(PROJECT, annotations=flood))
    letters.store.assign(PROJECT, {}, {text_hash("buy my cheap lamps"): True})
    letters.decide(range(10))
    found = set[str]()
    while letters.is_behind():
        letters.run()
        found |= {comment.text for comment in learned.comments}
        assert letters.versions.next_number() <= 4, "it gets no further"
    assert {task for task in range(10) if letters.text(task) in found} == set(range(10)) - letters.held_out()
    assert "buy my cheap lamps" not in found


@pytest.mark.parametrize("least", [20, 1000])
def test_with_too_few_to_stop_by_every_epoch_is_run(letters: LetterProject, monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(worker.training, "LEAST_FOR_STOPPING", least)
    letters.mislead()
    letters.run()
    training = letters.versions.manifest(2).training
    assert training["epochs_planned"] == 8
    assert (training["epochs"] == 8) is (least == 1000)


def test_the_best_version_is_remembered_and_kept_and_rivals_with_every_candidate(
    letters: LetterProject, learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert letters.versions.best(1) == 1
    learned.then = lambda *arguments: UNCHANGED  # a candidate that is no better
    for number in range(2, 5):
        letters.decide([number], f"2026-02-0{number}", upside_down=True)
        if number in letters.held_out():
            letters.decide([10 * number + other for other in range(6)], f"2026-02-0{number}", upside_down=True)
        assert letters.run(keep_versions=2)["published"] == f"v{number}"
        manifest = letters.versions.manifest(number)
        assert (manifest.parent, manifest.best) == (number - 1, 1)
    assert letters.versions.manifest(4).verdict.reasons == ("not worse than v3 and v1",)
    assert (letters.versions.numbers(), letters.versions.current()) == ([1, 3, 4], 4)
    (letters.versions.folder(1) / WEIGHTS_FILE).write_bytes(b"damaged")
    letters.decide(range(6, 20), "2026-02-05", upside_down=True)
    assert letters.run()["published"] == "v5"  # without the best, the live version alone is the rival
    assert letters.versions.manifest(5).verdict.reasons == ("not worse than v4",)


def test_a_projects_first_version_starts_from_the_base_in_service(project: Project, learned: Learned) -> None:
    base = ProjectVersions(project.settings.models_dir(), BASE_PROJECT)
    classifier = build_classifier(project.settings.encoder, project.settings.data_dir, project.settings.max_length)
    random = np.random.default_rng(1)
    classifier.set_weights(
        {name: random.normal(0, 1, value.shape).astype(np.float32) for name, value in classifier.weights().items()}
    )
    manifest = replace(manifest_of(1, fingerprint=classifier.fingerprint()), golden_outputs=golden_outputs(classifier))
    base.publish(manifest, classifier.weights(), CARDS)
    given = {}

    def note(classifier: Any, *arguments: Any) -> Trained:
        given.update(classifier.weights())
        return fine_tune(classifier, *arguments)

    learned.then = note
    project.annotate(range(4))
    assert project.run() == {"published": "v1", "examples": 4 + 64, "new": 4, "loss": pytest.approx(1, abs=10)}
    published = project.versions.manifest(1)
    assert (published.parent, published.parent_name) == (0, "base-v1")
    assert published.training["learning_rate"] == project.settings.learning_rate
    for name, value in classifier.weights().items():
        np.testing.assert_array_equal(given[name], value)


def test_a_fresh_head_learns_at_the_rate_of_a_corpus_and_later_versions_at_the_setting_s(project: Project) -> None:
    rates = []
    for task in range(2):
        project.annotate([task])
        project.run(learning_rate=3e-6)
        rates.append(project.versions.manifest(task + 1).training["learning_rate"])
    assert rates == [CORPUS_PLAN.learning_rate, 3e-6]
