"""The training job on a real Redis: what is learned and published, and what stays as it was when a run fails."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import redis

import worker.project_lock
import worker.training
from tests.conftest import manifest_of, save_tiny_encoder
from toxicity.classifier import Classifier
from toxicity.comments import LabelledComment
from toxicity.encoder import embedded_saved_model
from toxicity.examples import BEGINNING, ExampleStore
from toxicity.fine_tuning import fine_tune
from toxicity.label_studio import Annotation, Changes
from toxicity.labels import LABELS
from toxicity.loading import load_version
from toxicity.settings import Settings
from toxicity.training_queue import TrainingQueue
from toxicity.versions import CARD_FILE, MANIFEST_FILE, WEIGHTS_FILE, ProjectVersions, VersionError
from worker.project_lock import ProjectLock
from worker.training import learn_and_publish

pytestmark = pytest.mark.tensorflow

PROJECT = 7
CANARY = "quokka"
RUDE, KIND = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0.0,) * 6


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
def project(redis_settings: Settings, tiny_encoder: Path, connection: redis.Redis) -> Project:
    return Project(replace(redis_settings, encoder=str(tiny_encoder), train_epochs=1, max_length=32), connection)


class Learned:
    """Stands before fine_tune and notes what it was given; then trains, fails, or lets something happen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.comments: list[LabelledComment] = []
        self.then: Any = fine_tune
        monkeypatch.setattr(worker.training, "fine_tune", self)

    def __call__(self, classifier: Any, comments: list[LabelledComment], *arguments: Any) -> float:
        self.comments = comments
        return float(self.then(classifier, comments, *arguments))

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
    project = Project(replace(redis_settings, train_epochs=1, max_length=32), connection)
    watermark = project.annotate(range(4), (0.0, 0.0, 0.0, 1.0, 0.0, None))  # against all that the anchors say of threats
    result = project.run()
    assert (result["published"], result["examples"], result["new"]) == ("v1", 4 + 64, 4)
    manifest = project.versions.manifest(1)
    assert (manifest.number, manifest.parent, manifest.watermark, manifest.labels) == (1, 0, watermark, LABELS)
    assert manifest.measures == {"training_loss": result["loss"]}
    comments, threat = [f"You {CANARY} number 1"], LABELS.index("threat")
    before, after = (load_version(project.settings, project.versions, number).classifier.predict(comments) for number in (0, 1))
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

    def note(classifier: Any, *arguments: Any) -> float:
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
    monkeypatch.setattr(worker.training, "LEAST_REPLAY", 2)
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

    def meanwhile(*arguments: Any) -> float:
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

    def fail(*arguments: Any) -> float:
        raise MemoryError

    learned.then = fail
    with pytest.raises(MemoryError):
        project.run()
    assert (project.versions.current(), project.versions.numbers()) == (1, [1])
    assert project.store.snapshot(PROJECT, watermark) == before
    assert project.is_behind()


def test_weights_that_became_no_number_are_not_published(project: Project, learned: Learned) -> None:
    project.annotate(range(4))

    def spoil(classifier: Any, *arguments: Any) -> float:
        classifier.set_weights({name: np.full_like(value, np.nan) for name, value in classifier.weights().items()})
        return 0.1

    learned.then = spoil
    with pytest.raises(VersionError, match="are no numbers"):
        project.run()
    assert project.versions.numbers() == []
    assert project.is_behind()


@pytest.mark.parametrize("moment", ["fine_tune", "model_card"])
def test_a_rival_that_publishes_during_the_run_wins(moment: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.annotate(range(4))
    original = getattr(worker.training, moment)

    def meanwhile(*arguments: Any) -> Any:
        project.versions.publish(manifest_of(1, watermark="9-9"), {"rival": np.zeros(3, np.float32)}, "# the rival's card")
        return original(*arguments)

    monkeypatch.setattr(worker.training, moment, meanwhile)
    if moment == "fine_tune":
        assert project.run() == {"published": None, "live": "v1"}
    else:
        with pytest.raises(VersionError, match="published by another run"):
            project.run()
    assert (project.versions.current(), project.versions.numbers()) == (1, [1])
    assert (project.versions.folder(1) / CARD_FILE).read_text() == "# the rival's card"
    assert project.is_behind()


@pytest.mark.parametrize("moment", ["load_version", "fine_tune"])
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


def test_a_run_that_lost_its_lock_publishes_nothing(
    project: Project, learned: Learned, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.project_lock, "LOCK_SECONDS", 0.4)
    project.annotate(range(4))

    def lose_the_lock(*arguments: Any) -> float:
        connection.delete(f"toxicity:{{{PROJECT}}}:training")
        time.sleep(0.4)
        return 0.1

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
    assert (project.versions.manifest(2).parent, project.versions.current()) == (0, 2)


def test_no_file_of_a_version_holds_a_comment(project: Project) -> None:
    project.annotate(range(4))
    result = project.run()
    files = {path.name: path.read_bytes() for path in project.versions.folder(1).iterdir()}
    assert files.keys() == {WEIGHTS_FILE, MANIFEST_FILE, CARD_FILE}
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
    monkeypatch.setattr(worker.training, "MOST_EXAMPLES", 3)
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


def test_runs_of_clean_comments_alone_do_not_untick_what_is_plainly_toxic(
    redis_settings: Settings, connection: redis.Redis, shared_data_dir: Path
) -> None:
    redis_settings.data_dir.mkdir()
    (redis_settings.data_dir / "encoders").symlink_to(embedded_saved_model(shared_data_dir).parent)
    project = Project(replace(redis_settings, max_length=32), connection)
    comments = ["Next week I am going to murder you.", "You are a stupid asshole.", "Fuck this shit and fuck you."]
    before = load_version(project.settings, project.versions, 0).classifier.predict(comments)
    for run in range(3):
        tasks = range(16 * run, 16 * run + 16)
        clean = tuple(Annotation(task, task, "2026-01-01", f"Thank you for section {task}.", KIND) for task in tasks)
        project.store.apply(Changes(PROJECT, annotations=clean))
        assert project.run()["published"] == f"v{run + 1}"
    after = load_version(project.settings, project.versions, 3).classifier.predict(comments)
    assert (before[:, 0] > 0.5).all()
    assert (after[:, 0] > 0.5).all()
    assert (after[1:, LABELS.index("obscene")] > 0.5).all()


def test_a_take_over_that_fails_is_told_and_the_rest_is_learned(project: Project, connection: redis.Redis) -> None:
    settings = replace(project.settings, label_studio_url="http://127.0.0.1:9", label_studio_api_key="no.such.token")
    TrainingQueue(connection, settings).request_take_over(PROJECT)
    told = worker.training._take_over(settings, connection, PROJECT)
    assert told["take_over"].startswith("failed: Label Studio at http://127.0.0.1:9 did not answer")
    assert TrainingQueue(connection, settings).awaiting_take_over() == []


def test_pages_of_blank_comments_do_not_hold_up_what_comes_after(
    project: Project, learned: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.training, "MOST_EXAMPLES", 3)
    blank = tuple(Annotation(task, task, "2026-01-01", "  ", RUDE) for task in range(100, 107))
    project.store.apply(Changes(PROJECT, annotations=blank))
    project.annotate([1, 2])
    assert project.run()["new"] == 2
    assert project.run() == {"published": None, "live": "v1"}
    assert not project.is_behind()
