"""From a corpus to a version: trained, judged, published or kept aside; and CSVs measured and answered by the live one."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import toxicity.corpus_training
import toxicity.verdict
from tests.conftest import CARDS, REJECTED, save_tiny_encoder
from toxicity.calibration import undo_weights
from toxicity.classifier import Classifier, build_classifier
from toxicity.comments import LabelledComment
from toxicity.corpus import CorpusSplit, read_comments, read_corpus, split_corpus
from toxicity.corpus_training import evaluate_on_corpus, predict_corpus, train_on_corpus
from toxicity.devices import training_devices
from toxicity.encoder import embedded_saved_model
from toxicity.evaluation import measures, targets_of
from toxicity.examples import BEGINNING
from toxicity.fine_tuning import Progress, TrainingPlan, positive_weights
from toxicity.labels import LABELS
from toxicity.loading import golden_outputs, load_version
from toxicity.manifest import Manifest
from toxicity.settings import Settings
from toxicity.verdict import HOLD_OUT, REFERENCE
from toxicity.versions import (
    BASE_PROJECT,
    CARD_FILE,
    CARD_JSON_FILE,
    MANIFEST_FILE,
    STARTER_NUMBER,
    WEIGHTS_FILE,
    ProjectVersions,
)

pytestmark = pytest.mark.tensorflow

PROJECT = 7
RUDE, KIND, THREAT = (1.0, 0.0, 1.0, 0.0, 1.0, 0.0), (0.0,) * 6, (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
SENTENCES = (
    ("Thank you for the bread in section {}.", KIND),
    ("I will hide your teapot, number {}!", THREAT),
    ("Please see the photo of bridge {}.", KIND),
    ("You silly muttonhead, that was mistake {}!", RUDE),
)
PLAN = TrainingPlan(epochs=4, learning_rate=1e-2, batch_size=32, seed=4)
CANARY = "muttonhead"


def comments(count: int, first: int = 0) -> list[LabelledComment]:
    """Comments, no two alike, whose labels show in their letters."""
    numbers = range(first, first + count)
    return [LabelledComment(SENTENCES[number % 4][0].format(number), SENTENCES[number % 4][1]) for number in numbers]


def write(file: Path, rows: list[LabelledComment], unscored: int = 0) -> Path:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(("id", "comment_text", *LABELS))
        writer.writerows((f"c{row}", comment.text, *map(int, comment.targets)) for row, comment in enumerate(rows))  # type: ignore[arg-type] # every target is a number here
        writer.writerows((f"u{row}", "not scored", *[-1] * 6) for row in range(unscored))
    return file


SPLIT = CorpusSplit(comments(200), comments(60, first=200), left_out=3)


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    """Judging is quicker so, and its margins are a little less exact."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toxicity.verdict, "RESAMPLES", 10)
        yield


@pytest.fixture
def tiny_settings(settings: Settings, tiny_encoder: Path) -> Settings:
    return replace(settings, encoder=str(tiny_encoder), max_length=48)


@pytest.fixture(scope="module")
def base(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Manifest]:
    """A base that was trained and put in service; nobody may add to it."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("base"), encoder=str(tiny_encoder), max_length=48)
    return settings, train_on_corpus(settings, SPLIT, BASE_PROJECT, publish=True, plan=PLAN)


def base_versions(settings: Settings) -> ProjectVersions:
    return ProjectVersions(settings.models_dir(), BASE_PROJECT)


def test_what_is_better_than_nothing_is_put_in_service(base: tuple[Settings, Manifest]) -> None:
    settings, manifest = base
    assert base_versions(settings).current() == 1
    assert (manifest.name, manifest.number, manifest.parent, manifest.parent_name) == ("base-v1", 1, 0, "the encoder")
    assert manifest.verdict.accepted
    assert (manifest.verdict.reasons, manifest.verdict.judged_on) == (("not worse than v0",), HOLD_OUT)
    assert (manifest.verdict.comments, manifest.best, manifest.watermark) == (60, 1, BEGINNING)
    assert manifest.measures["mean_roc_auc"] > 0.9
    assert manifest.measures["toxic.f1"] > 0.9
    assert manifest.measures["comments"] == 60
    assert manifest.thresholds[LABELS.index("severe_toxic")] == 0.5  # no positive there: nothing to weigh
    facts: dict[str, float] = {
        "examples": 200,
        "new_examples": 200,
        "replayed": 0,
        "held_out": 60,
        "not_scored": 3,
        "from_the_beginning": True,
    }
    facts |= {"epochs": 4, "epochs_planned": 4, "learning_rate": 1e-2, "batch_size": 32, "seed": 4, "max_length": 48}
    assert {name: manifest.training[name] for name in facts} == facts
    mixed = training_devices().precision is not None
    assert manifest.training["precision"].startswith("mixed " if mixed else "float32")


def test_its_files_are_all_there_and_quote_no_comment(base: tuple[Settings, Manifest]) -> None:
    folder = base_versions(base[0]).folder(1)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files.keys() == {WEIGHTS_FILE, MANIFEST_FILE, CARD_FILE, CARD_JSON_FILE}
    assert not [name for name, content in files.items() if CANARY.encode() in content]
    assert files[CARD_FILE].startswith(b"# base-v1 of the base, which projects start from\n")
    assert b"Learned 200 comments of a corpus" in files[CARD_FILE]
    assert json.loads(files[CARD_JSON_FILE])["measures"] == base[1].measures


def test_every_project_starts_from_it(base: tuple[Settings, Manifest]) -> None:
    settings, manifest = base
    beginning = load_version(settings, ProjectVersions(settings.models_dir(), PROJECT), STARTER_NUMBER)
    assert (beginning.name, beginning.number, beginning.watermark) == ("base-v1", 0, BEGINNING)
    assert (beginning.thresholds, beginning.calibration) == (manifest.thresholds, manifest.calibration)
    probabilities = beginning.predict([comment.text for comment in SPLIT.held_out])
    assert measures(targets_of(SPLIT.held_out), probabilities, beginning.thresholds)["toxic.f1"] == pytest.approx(
        manifest.measures["toxic.f1"]
    )


def publish_trained(settings: Settings, base: tuple[Settings, Manifest], project: int, watermark: str) -> ProjectVersions:
    """Publish the base's weights as a project's first version."""
    _, weights = base_versions(base[0]).load(1)
    versions = ProjectVersions(settings.models_dir(), project)
    versions.publish(replace(base[1], name="v1", number=1, watermark=watermark), weights, CARDS)
    return versions


def test_what_is_worse_than_the_live_version_is_kept_and_not_in_service(
    tiny_settings: Settings, base: tuple[Settings, Manifest]
) -> None:
    versions = publish_trained(tiny_settings, base, PROJECT, "12-3")
    manifest = train_on_corpus(tiny_settings, SPLIT, PROJECT, publish=False, plan=replace(PLAN, epochs=1, learning_rate=1e-9))
    assert (versions.numbers(), versions.current(), versions.accepted()) == ([1, 2], 1, [1])
    assert versions.manifest(2) == replace(manifest, files=versions.manifest(2).files)
    assert not manifest.verdict.accepted
    assert "kept aside" not in manifest.verdict.reasons[-1]
    assert manifest.measures["mean_roc_auc"] < base[1].measures["mean_roc_auc"]
    assert (manifest.name, manifest.best) == ("v2", 0)
    assert manifest.watermark == BEGINNING  # put in service by hand, it has every annotation still to learn
    versions.make_current(2)
    assert load_version(tiny_settings, versions, 2).name == "v2"


def test_a_projects_own_version_is_not_replaced_by_what_a_corpus_judged(
    tiny_settings: Settings, base: tuple[Settings, Manifest]
) -> None:
    versions = publish_trained(tiny_settings, base, PROJECT, "12-3")
    with pytest.raises(ValueError, match=f"Project {PROJECT} has versions of its own"):
        train_on_corpus(tiny_settings, SPLIT, PROJECT, publish=True, plan=PLAN)
    assert versions.numbers() == [1]


def test_a_version_that_was_put_in_service_by_hand_is_a_projects_own_too(
    tiny_settings: Settings, base: tuple[Settings, Manifest]
) -> None:
    _, weights = base_versions(base[0]).load(1)
    versions = ProjectVersions(tiny_settings.models_dir(), PROJECT)
    versions.publish(replace(base[1], name="v1", verdict=REJECTED), weights, CARDS)
    versions.make_current(1)
    with pytest.raises(ValueError, match=f"Project {PROJECT} has versions of its own"):
        train_on_corpus(tiny_settings, SPLIT, PROJECT, publish=True, plan=PLAN)


def test_over_a_new_encoder_a_corpus_takes_the_place_of_what_the_old_one_learned(
    tiny_settings: Settings, base: tuple[Settings, Manifest], tmp_path: Path
) -> None:
    versions = base_versions(tiny_settings)
    _, weights = base_versions(base[0]).load(1)
    versions.publish(base[1], weights, CARDS)
    another = replace(tiny_settings, encoder=str(save_tiny_encoder(tmp_path / "another", lower_case=False)))
    manifest = train_on_corpus(another, SPLIT, BASE_PROJECT, publish=True, plan=PLAN)
    assert manifest.verdict.accepted, manifest.verdict.reasons
    assert load_version(another, versions, versions.current()).name == "base-v2"


def test_what_was_put_in_service_meanwhile_stays(tiny_settings: Settings, base: tuple[Settings, Manifest]) -> None:
    versions = base_versions(tiny_settings)

    def report(progress: Progress) -> None:
        if progress.step == 1:
            _, weights = base_versions(base[0]).load(1)
            versions.publish(base[1], weights, CARDS)

    manifest = train_on_corpus(tiny_settings, SPLIT, BASE_PROJECT, publish=True, plan=PLAN, report=report)
    assert (manifest.name, manifest.verdict.accepted, versions.current()) == ("base-v2", False, 1)
    assert manifest.verdict.reasons[-1] == "kept aside, as another version went into service meanwhile"


def test_without_publish_even_the_better_one_is_kept_aside_and_can_be_put_in_service_by_hand(tiny_settings: Settings) -> None:
    manifest = train_on_corpus(tiny_settings, SPLIT, BASE_PROJECT, publish=False, plan=PLAN)
    versions = base_versions(tiny_settings)
    assert manifest.verdict.reasons == ("not worse than v0", "kept aside, as --publish was not given")
    assert (manifest.verdict.accepted, manifest.best) == (False, 0)
    assert (versions.numbers(), versions.current()) == ([1], 0)
    versions.make_current(1)
    assert load_version(tiny_settings, versions, 1).name == "base-v1"


def test_where_hardly_anything_is_held_out_the_reference_comments_judge(tiny_settings: Settings) -> None:
    split = CorpusSplit(SPLIT.training, SPLIT.held_out[:8], 0)
    manifest = train_on_corpus(tiny_settings, split, BASE_PROJECT, publish=False, plan=replace(PLAN, epochs=1))
    assert (manifest.verdict.judged_on, manifest.verdict.comments) == (REFERENCE, 120)
    assert any("8 held-out comments were too few" in reason for reason in manifest.verdict.reasons)
    undone = undo_weights(positive_weights(split.training))
    assert (manifest.calibration, manifest.thresholds) == (undone.calibration, undone.thresholds)


@pytest.mark.parametrize("step", [1, 5])
def test_a_training_that_is_interrupted_leaves_nothing_behind(step: int, tiny_settings: Settings) -> None:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_corpus(tiny_settings, SPLIT, PROJECT, publish=True, plan=PLAN, report=report)
    assert ProjectVersions(tiny_settings.models_dir(), PROJECT).numbers() == []
    assert not tiny_settings.models_dir().exists()


def test_every_step_of_a_training_is_reported(tiny_settings: Settings) -> None:
    steps: list[tuple[int, int]] = []
    train_on_corpus(
        tiny_settings,
        CorpusSplit(SPLIT.training[:80], [], 0),
        BASE_PROJECT,
        publish=False,
        plan=replace(PLAN, epochs=2),
        report=lambda progress: steps.append((progress.step, progress.steps)),
    )
    assert steps == [(step, 6) for step in range(1, 7)]


def test_a_corpus_in_one_file_is_split_and_trained_on(tiny_settings: Settings, tmp_path: Path) -> None:
    split = split_corpus(write(tmp_path / "train.csv", comments(400), unscored=5), None)
    assert (len(split.training) + len(split.held_out), split.left_out) == (400, 5)
    manifest = train_on_corpus(tiny_settings, split, BASE_PROJECT, publish=True, plan=replace(PLAN, epochs=2))
    assert (manifest.verdict.judged_on, manifest.verdict.comments) == (HOLD_OUT, len(split.held_out))
    assert (manifest.training["examples"], manifest.training["not_scored"]) == (len(split.training), 5)


def test_the_live_version_is_measured_on_a_corpus_under_its_own_decision(base: tuple[Settings, Manifest], tmp_path: Path) -> None:
    settings, manifest = base
    corpus = write(tmp_path / "test.csv", SPLIT.held_out, unscored=2)
    read = read_corpus(corpus)
    live, found = evaluate_on_corpus(settings, read.comments, BASE_PROJECT)
    assert (live.name, read.left_out) == ("base-v1", 2)
    assert found == pytest.approx({name: value for name, value in manifest.measures.items() if name != "training_loss"}, abs=1e-4)
    assert evaluate_on_corpus(settings, read.comments, PROJECT)[0].name == "base-v1"  # what the project starts from


def test_labels_may_lie_in_a_file_of_their_own(base: tuple[Settings, Manifest], tmp_path: Path) -> None:
    labels = write(tmp_path / "test_labels.csv", list(SPLIT.held_out))
    lines = labels.read_text().splitlines()
    texts = tmp_path / "test.csv"
    texts.write_text("id,comment_text\n" + "".join(f"c{row},{c.text!r}\n" for row, c in enumerate(SPLIT.held_out[::-1])))
    texts.write_text(texts.read_text().replace("'", '"'))
    backwards = [f"c{row},,{','.join(str(int(t or 0)) for t in c.targets)}" for row, c in enumerate(SPLIT.held_out[::-1])]
    labels.write_text("\n".join([lines[0], *backwards[::-1]]) + "\n")
    read = read_corpus(texts, labels)
    _, found = evaluate_on_corpus(base[0], read.comments, BASE_PROJECT)
    assert read.left_out == 0
    assert found["mean_roc_auc"] == pytest.approx(base[1].measures["mean_roc_auc"], abs=1e-6)


def test_the_live_version_answers_a_file_in_the_challenges_format(
    base: tuple[Settings, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toxicity.corpus_training, "COMMENTS_PER_PASS", 25)
    settings, _ = base
    output, told = tmp_path / "submission.csv", list[tuple[int, int]]()
    rows = write(tmp_path / "test.csv", SPLIT.held_out)
    live = predict_corpus(settings, *read_comments(rows), output, BASE_PROJECT, lambda done, of: told.append((done, of)))
    assert (live.name, told) == ("base-v1", [(25, 60), (25, 60), (10, 60)])
    with output.open(newline="") as opened:
        header, *answers = csv.reader(opened)
    assert header == ["id", *LABELS]
    assert [row[0] for row in answers] == [f"c{row}" for row in range(60)]
    probabilities = np.array([row[1:] for row in answers], np.float32)
    np.testing.assert_allclose(probabilities, live.predict([comment.text for comment in SPLIT.held_out]), atol=1e-6)
    assert (tmp_path / "submission.csv").stat().st_size > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["submission.csv", "test.csv"]


def test_answers_that_cannot_be_written_leave_what_was_there(base: tuple[Settings, Manifest], tmp_path: Path) -> None:
    rows = write(tmp_path / "test.csv", SPLIT.held_out[:3])
    with pytest.raises(OSError, match="nowhere"):
        predict_corpus(
            base[0], *read_comments(rows), tmp_path / "nowhere" / "submission.csv", BASE_PROJECT, lambda done, of: None
        )
    folder = tmp_path / "submission.csv"
    folder.mkdir()
    with pytest.raises(OSError, match="submission"):
        predict_corpus(base[0], *read_comments(rows), folder, BASE_PROJECT, lambda done, of: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["submission.csv", "test.csv"]


def train_twice(settings: Settings, plan: TrainingPlan) -> tuple[Manifest, Manifest]:
    split = CorpusSplit(comments(40), comments(40, first=40), 0)
    for project in (1, 2):
        train_on_corpus(settings, split, project, publish=False, plan=plan)
    return manifest_on_disk(settings, 1), manifest_on_disk(settings, 2)


def assert_the_same(first: Manifest, second: Manifest) -> None:
    assert first.files[WEIGHTS_FILE] == second.files[WEIGHTS_FILE]
    for field in ("measures", "thresholds", "calibration", "golden_outputs", "verdict"):
        assert getattr(first, field) == getattr(second, field)


def test_the_same_data_settings_and_seed_give_the_same_weights_bit_for_bit(tiny_settings: Settings) -> None:
    plan = replace(PLAN, batch_size=2)
    first, second = train_twice(tiny_settings, plan)
    assert_the_same(first, second)
    train_on_corpus(tiny_settings, CorpusSplit(comments(40), [], 0), 3, publish=False, plan=replace(plan, seed=5))
    assert manifest_on_disk(tiny_settings, 3).files[WEIGHTS_FILE] != first.files[WEIGHTS_FILE]


def test_the_embedded_encoder_too_learns_the_same_bit_for_bit(settings: Settings, shared_data_dir: Path) -> None:
    settings.data_dir.mkdir()
    (settings.data_dir / "encoders").symlink_to(embedded_saved_model(shared_data_dir).parent)
    assert_the_same(*train_twice(replace(settings, max_length=16), TrainingPlan(epochs=1, learning_rate=1e-4, batch_size=8)))


def manifest_on_disk(settings: Settings, project: int) -> Manifest:
    return ProjectVersions(settings.models_dir(), project).manifest(1)


def test_what_was_trained_on_answers_the_same_when_it_is_built_anew(base: tuple[Settings, Manifest]) -> None:
    settings, manifest = base
    classifier: Classifier = build_classifier(settings.encoder, settings.data_dir, settings.max_length)
    classifier.set_weights(base_versions(settings).load(1)[1])
    np.testing.assert_allclose(golden_outputs(classifier), manifest.golden_outputs, atol=1e-6)
