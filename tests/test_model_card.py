"""Model cards: what a version was learned from, how good it is, and what it is not for."""

import json
import re
from dataclasses import replace

import pytest

from tests.conftest import REJECTED, manifest_of
from toxicity.calibration import Calibration
from toxicity.labels import LABELS
from toxicity.manifest import Manifest
from toxicity.model_card import LIMITS, installed_packages, model_cards
from toxicity.versions import CARD_FILE, CARD_JSON_FILE

PROJECT = 7


@pytest.fixture
def manifest() -> Manifest:
    plain = manifest_of(3, 2)
    measures = {"comments": 40, "mean_roc_auc": 0.98765, "log_loss": 0.12344, "training_loss": 0.2}
    measures |= {"toxic.positives": 17, "toxic.roc_auc": 0.9, "toxic.f1": 0.8, "toxic.precision": 0.75, "toxic.recall": 0.85714}
    measures |= {"threat.positives": 0}
    training = {**plain.training, "new_examples": 12, "replayed": 64, "held_out": 53, "learning_rate": 3e-5, "seed": 5}
    return replace(
        plain,
        measures=measures,
        training={**training, "precision": "mixed float16", "packages": {"numpy": "2.4.6", "tf-keras": "2.21.0"}},
        thresholds=(0.25, 0.5, 0.5, 0.375, 0.5, 0.5),
        calibration=Calibration((0.5, *[1.0] * 5), (-1.25, *[0.0] * 5)),
    )


def text_of(manifest: Manifest, project: int = PROJECT) -> str:
    return " ".join(model_cards(manifest, project)[CARD_FILE].split())


def table(manifest: Manifest) -> dict[str, list[str]]:
    lines = model_cards(manifest, PROJECT)[CARD_FILE].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_a_card_is_there_for_programs_and_for_people(manifest: Manifest) -> None:
    assert model_cards(manifest, PROJECT).keys() == {CARD_JSON_FILE, CARD_FILE}


def test_the_text_says_what_was_learned_and_how(manifest: Manifest) -> None:
    text = text_of(manifest)
    for said in (
        "# v3 of project 7 Puts six labels (toxic, severe_toxic, obscene, threat, insult, identity_hate) on a comment.",
        "Starts from v2; encoder `embedded`.",
        "Learned 12 new or changed examples of the project, beside 64 replayed ones",
        "Held out, and never learned: 53.",
        "1 epochs, learning rate 3e-05, batches of 16, seed 5, at most 32 word pieces; mixed float16.",
        "numpy 2.4.6, tf-keras 2.21.0.",
        "Verdict: accepted, judged on 40 comments (hold-out): not worse than its parent.",
        "Mean ROC AUC 0.9877, log loss 0.1234, training loss 0.2000.",
        LIMITS,
    ):
        assert said in text


def test_the_table_has_a_row_for_each_label_with_a_dash_for_what_is_not_known(manifest: Manifest) -> None:
    rows = table(manifest)
    assert rows.pop("label") == ["ROC AUC", "F1", "precision", "recall", "positives", "threshold", "calibration"]
    assert tuple(rows) == LABELS
    assert rows["toxic"] == ["0.9000", "0.8000", "0.7500", "0.8571", "17", "0.250", "0.500 x -1.250"]
    assert rows["threat"] == ["-", "-", "-", "-", "0", "0.375", "1.000 x +0.000"]


def test_a_rejected_version_is_told_from_afar_with_the_reasons(manifest: Manifest) -> None:
    rejected = replace(manifest, verdict=REJECTED)
    assert f"Verdict: REJECTED, judged on 40 comments (hold-out): {REJECTED.reasons[0]}." in text_of(rejected)


def test_a_version_without_measures_has_a_card_all_the_same(manifest: Manifest) -> None:
    unmeasured = replace(manifest, measures={}, golden_outputs=())
    assert "Mean ROC AUC -, log loss -, training loss -." in text_of(unmeasured)
    assert table(unmeasured)["toxic"][:4] == ["-"] * 4
    assert json.loads(model_cards(unmeasured, PROJECT)[CARD_JSON_FILE])["measures"] == {}


def test_a_base_is_told_from_a_projects_version(manifest: Manifest) -> None:
    base = replace(manifest, name="base-v3")
    assert text_of(base, 0).startswith("# base-v3 of the base, which projects start from")


def test_the_json_says_the_same_to_programs(manifest: Manifest) -> None:
    facts = json.loads(model_cards(manifest, PROJECT)[CARD_JSON_FILE])
    assert facts["labels"] == list(LABELS)
    assert (facts["name"], facts["project"], facts["parent"], facts["encoder"]) == ("v3", PROJECT, "v2", "embedded")
    assert facts["thresholds"] == dict(zip(LABELS, manifest.thresholds, strict=True))
    assert facts["calibration"] == {"slopes": [0.5, 1, 1, 1, 1, 1], "offsets": [-1.25, 0, 0, 0, 0, 0]}
    assert (facts["training"], facts["measures"], facts["limits"]) == (manifest.training, manifest.measures, LIMITS)
    verdict = {"accepted": True, "reasons": ["not worse than its parent"], "judged_on": "hold-out", "comments": 40}
    assert facts["verdict"] == verdict


def test_the_packages_that_a_result_depends_on_are_named_with_their_versions() -> None:
    packages = installed_packages()
    assert {"tf-keras", "tensorflow-hub", "numpy", "safetensors"} <= packages.keys()
    assert len({"tensorflow", "tensorflow-cpu"} & packages.keys()) == 1
    assert all(re.match(r"\d+\.\d+", version) for version in packages.values())
