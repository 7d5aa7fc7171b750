"""From a trained network to a version: what it is judged on, what it takes over from its parent, and its manifest."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import toxicity.verdict
from tests.conftest import PredictorStandIn, publish
from toxicity.calibration import Calibration, Decision
from toxicity.classifier import Classifier, build_classifier
from toxicity.comments import LabelledComment
from toxicity.corpus import read_corpus, reference_file
from toxicity.evaluation import measures, targets_of
from toxicity.examples import BEGINNING
from toxicity.fine_tuning import Trained, TrainingPlan, fine_tune
from toxicity.judging import Judgement, begin_trial, end_trial, manifest_of, training_facts
from toxicity.labels import LABELS
from toxicity.loading import GOLDEN_COMMENTS
from toxicity.manifest import Verdict, manifest_from_json, manifest_to_json
from toxicity.settings import Settings
from toxicity.verdict import HOLD_OUT, LEAST_HELD_OUT, REFERENCE
from toxicity.versions import LoadedVersion, ProjectVersions

pytestmark = pytest.mark.tensorflow

RUDE, KIND = (1.0, 0.0, 1.0, None, 1.0, 0.0), (0.0, 0.0, 0.0, None, 0.0, 0.0)
NOUNS = ("potato", "muttonhead", "teapot", "sausage", "turnip")
HELD_OUT = [
    LabelledComment(
        f"{words} {noun}{'!' * (1 + number)}" if rude else f"{words} {noun}{'.' * (1 + number)}", RUDE if rude else KIND
    )
    for rude, words in ((True, "Go away, you silly"), (False, "Thank you for the"))
    for noun in NOUNS
    for number in range(4)
]
OTHERS = [replace(comment, text=comment.text.replace("silly", "great").replace("the", "this")) for comment in HELD_OUT]
PARENT = Decision(Calibration((2.0,) * 6, (-0.5,) * 6), (0.3, 0.4, 0.5, 0.6, 0.7, 0.8))
PLAN = TrainingPlan(epochs=30, learning_rate=1e-2)


class Shouting(PredictorStandIn):
    """Takes a comment for rude where it has an exclamation mark, and is so sure of that."""

    def __init__(self, sure: float) -> None:
        self.sure = sure

    def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]:
        rude = np.array([self.sure if "!" in comment else 1 - self.sure for comment in comments], np.float32)
        return np.repeat(rude[:, None], len(LABELS), axis=1) + np.linspace(0, 1e-3, len(comments), dtype=np.float32)[:, None]


def version(name: str, sure: float, number: int = 1, calibration: Calibration = PARENT.calibration) -> LoadedVersion:
    return LoadedVersion(name, number, PARENT.thresholds, BEGINNING, Shouting(sure), calibration)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judging is quicker so, and its margins are a little less exact."""
    monkeypatch.setattr(toxicity.verdict, "RESAMPLES", 10)


@pytest.fixture
def fresh(tiny_encoder: Path, tmp_path: Path) -> Classifier:
    return build_classifier(str(tiny_encoder), tmp_path, 32)


@pytest.fixture(scope="module")
def candidate(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """It has learned of other comments what is rude."""
    classifier = build_classifier(str(tiny_encoder), tmp_path_factory.mktemp("candidate"), 32)
    fine_tune(classifier, OTHERS, PLAN)
    return classifier


def spoil(classifier: Classifier) -> None:
    classifier.set_weights({name: np.full_like(value, np.nan) for name, value in classifier.weights().items()})


def test_enough_held_out_comments_judge_and_each_rival_answers_them_as_it_is_served() -> None:
    rivals = [version("v1", 0.8), version("v2", 0.9)]
    trial = begin_trial(HELD_OUT, rivals)
    assert (trial.comments, trial.texts()) == (HELD_OUT, [comment.text for comment in HELD_OUT])
    assert (trial.yardstick.judged_on, trial.yardstick.held_out) == (HOLD_OUT, 40)
    np.testing.assert_array_equal(trial.yardstick.targets, targets_of(HELD_OUT))
    assert trial.rivals.keys() == {"v1", "v2"}
    np.testing.assert_array_equal(trial.rivals["v2"].probabilities, PARENT.calibration(Shouting(0.9).predict(trial.texts())))


@pytest.mark.parametrize(
    "held_out", [[], HELD_OUT[: LEAST_HELD_OUT - 1], HELD_OUT[20:] * 3], ids=["none", "too few", "all of them kind"]
)
def test_reference_comments_judge_where_held_out_ones_are_too_few(held_out: list[LabelledComment]) -> None:
    trial = begin_trial(held_out, [version("v1", 0.8)])
    assert trial.comments == read_corpus(reference_file()).comments
    assert (trial.yardstick.judged_on, trial.yardstick.held_out) == (REFERENCE, len(held_out))
    assert len(trial.rivals["v1"].probabilities) == len(trial.comments)


def test_what_learned_is_better_than_what_did_not_and_gets_a_decision_of_its_own(
    candidate: Classifier, fresh: Classifier
) -> None:
    trial = begin_trial(HELD_OUT, [LoadedVersion("v0", 0, PARENT.thresholds, BEGINNING, fresh, trained=False)])
    judgement = end_trial(trial, candidate, PARENT)
    assert judgement.verdict == Verdict(True, ("not worse than v0",), HOLD_OUT, 40)
    assert judgement.is_best
    threat, severe = LABELS.index("threat"), LABELS.index("severe_toxic")
    for column in (threat, severe):  # nobody was asked, or there is no positive: nothing to choose on
        assert judgement.decision.thresholds[column] == PARENT.thresholds[column]
        assert (judgement.decision.calibration.slopes[column], judgement.decision.calibration.offsets[column]) == (2.0, -0.5)
    assert judgement.decision.thresholds[0] != PARENT.thresholds[0]
    calibrated = judgement.decision.calibration(candidate.predict(trial.texts()))
    assert judgement.measures == measures(targets_of(HELD_OUT), calibrated, judgement.decision.thresholds)
    assert judgement.measures["toxic.f1"] > 0.9


def test_a_precision_floor_raises_thresholds_until_it_is_reached(candidate: Classifier) -> None:
    # Three that it takes for rude are not, if not those that it is surest of.
    misread = [replace(comment, targets=KIND) for comment in HELD_OUT[12:15]]
    held_out = [*HELD_OUT[:12], *misread, *HELD_OUT[15:]]
    trials = [begin_trial(held_out, [version("v1", 0.5)], floor) for floor in (0.0, 0.99)]
    without, floored = (end_trial(trial, candidate, PARENT) for trial in trials)
    assert without.measures["toxic.precision"] < 0.99 <= floored.measures["toxic.precision"]
    assert floored.decision.thresholds[0] > without.decision.thresholds[0]


def test_what_is_worse_than_one_of_its_rivals_is_rejected_and_measured_all_the_same(
    candidate: Classifier, fresh: Classifier
) -> None:
    fine_tune(fresh, OTHERS, replace(PLAN, epochs=12))
    good = LoadedVersion("v2", 2, PARENT.thresholds, BEGINNING, candidate)
    judgement = end_trial(begin_trial(HELD_OUT, [version("v1", 0.5), good]), fresh, PARENT)
    assert not judgement.verdict.accepted
    assert [reason for reason in judgement.verdict.reasons if "that of v2" in reason]
    assert not judgement.is_best
    assert 0.6 < judgement.measures["mean_roc_auc"] < 1


def test_on_reference_comments_it_keeps_its_parents_decision_and_is_no_best(candidate: Classifier) -> None:
    trial = begin_trial(HELD_OUT[:5], [LoadedVersion("v1", 1, PARENT.thresholds, BEGINNING, candidate)])
    judgement = end_trial(trial, candidate, PARENT)
    assert judgement.verdict.accepted
    assert (judgement.verdict.judged_on, judgement.verdict.comments) == (REFERENCE, len(trial.comments))
    assert "5 held-out comments were too few" in judgement.verdict.reasons[-1]
    assert (judgement.decision, judgement.is_best) == (PARENT, False)
    calibrated = PARENT.calibration(candidate.predict(trial.texts()))
    assert judgement.measures == measures(trial.yardstick.targets, calibrated, PARENT.thresholds)


@pytest.mark.parametrize("held_out", [HELD_OUT, HELD_OUT[:5]], ids=[HOLD_OUT, REFERENCE])
def test_weights_that_are_no_numbers_are_rejected_and_never_measured(held_out: list[LabelledComment], fresh: Classifier) -> None:
    trial = begin_trial(held_out, [version("v1", 0.8)])
    spoil(fresh)
    judgement = end_trial(trial, fresh, PARENT)
    assert (judgement.verdict.accepted, judgement.verdict.judged_on) == (False, trial.yardstick.judged_on)
    assert "are no numbers" in judgement.verdict.reasons[0]
    assert (judgement.decision, judgement.measures, judgement.is_best) == (PARENT, {}, False)


def test_a_weight_that_is_no_number_is_found_where_no_answer_shows_it(candidate: Classifier, fresh: Classifier) -> None:
    hidden = "encoder/pooler/kernel"
    fresh.set_weights({**candidate.weights(), hidden: np.full_like(candidate.weights()[hidden], np.inf)})
    assert np.isfinite(fresh.predict(["bread"])).all()
    judgement = end_trial(begin_trial(HELD_OUT, [version("v1", 0.5)]), fresh, PARENT)
    assert "are no numbers" in judgement.verdict.reasons[0]


def test_the_facts_of_a_training_are_those_that_it_was_run_with(settings: Settings, fresh: Classifier) -> None:
    facts = training_facts(replace(settings, max_length=48), replace(PLAN, seed=7), Trained(0.1, 2, (0.3, 0.4)), fresh)
    assert facts.pop("packages")["numpy"] == np.__version__
    assert facts == {
        "epochs": 2,
        "epochs_planned": 30,
        "learning_rate": 1e-2,
        "batch_size": 16,
        "seed": 7,
        "max_length": 48,
        "hold_out": 0.2,
        "replay": 1,
        "precision_floor": 0.0,
        "corpus": "",
        "precision": "float32",
    }


@pytest.fixture
def versions(settings: Settings) -> ProjectVersions:
    """Two versions, of which the first is the best."""
    versions = ProjectVersions(settings.models_dir(), 7)
    publish(versions, 1, best=1)
    publish(versions, 2, best=1)
    return versions


def judged(accepted: bool, is_best: bool) -> Judgement:
    return Judgement(Verdict(accepted, ("because",), HOLD_OUT, 40), PARENT, {"log_loss": 0.25}, is_best)


def test_a_manifest_says_what_was_judged_and_comes_back_from_its_file(versions: ProjectVersions, candidate: Classifier) -> None:
    parent = version("v2", 0.8, number=2)
    training = {"source": "new ones", "new_examples": 3}
    manifest = manifest_of(
        versions, 3, parent, candidate, judged(True, True), watermark="12-3", encoder="tiny", training=training
    )
    assert (manifest.name, manifest.number, manifest.parent, manifest.parent_name) == ("v3", 3, 2, "v2")
    assert (manifest.best, manifest.watermark, manifest.encoder, manifest.training) == (3, "12-3", "tiny", training)
    assert (manifest.thresholds, manifest.calibration) == (PARENT.thresholds, PARENT.calibration)
    assert (manifest.fingerprint, manifest.labels) == (candidate.fingerprint(), LABELS)
    assert (manifest.verdict, manifest.measures) == (judged(True, True).verdict, {"log_loss": 0.25})
    np.testing.assert_allclose(manifest.golden_outputs, candidate.predict(GOLDEN_COMMENTS), atol=1e-7)
    assert manifest_from_json(manifest_to_json(manifest)) == manifest
    json.dumps(manifest.training)


@pytest.mark.parametrize(("accepted", "is_best", "best"), [(True, True, 3), (True, False, 1), (False, False, 1)])
def test_the_best_of_the_line_is_the_parents_unless_this_one_is_better(
    accepted: bool, is_best: bool, best: int, versions: ProjectVersions, candidate: Classifier
) -> None:
    parent = version("v2", 0.8, number=2)
    judgement = judged(accepted, is_best)
    manifest = manifest_of(versions, 3, parent, candidate, judgement, watermark="1-1", encoder="tiny", training={})
    assert manifest.best == best


def test_of_a_line_that_begins_anew_no_best_is_known(versions: ProjectVersions, candidate: Classifier) -> None:
    parent = version("v0", 0.8, number=0)
    manifest = manifest_of(versions, 3, parent, candidate, judged(True, False), watermark="1-1", encoder="tiny", training={})
    assert (manifest.parent, manifest.best) == (0, 0)


def test_a_manifest_of_what_is_no_numbers_has_no_golden_outputs(versions: ProjectVersions, fresh: Classifier) -> None:
    spoil(fresh)
    parent = version("v2", 0.8, number=2)
    manifest = manifest_of(versions, 3, parent, fresh, judged(False, False), watermark="1-1", encoder="tiny", training={})
    assert manifest.golden_outputs == ()


def test_the_reference_comments_are_enough_to_judge_every_label() -> None:
    reference = begin_trial([], []).comments
    targets = targets_of(reference)
    assert np.isfinite(targets).all()
    assert (targets.sum(axis=0) >= toxicity.verdict.LEAST_FOR_AUC).all()
    assert len({comment.text for comment in reference}) == len(reference)
