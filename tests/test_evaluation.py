"""Measures, calibration and thresholds, each against its definition."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from toxicity.calibration import Calibration, Decision, logit
from toxicity.comments import LabelledComment
from toxicity.evaluation import (
    LEAST_OF_EACH,
    THRESHOLD_RANGE,
    FloatArray,
    choose,
    choose_thresholds,
    fit_calibration,
    log_losses,
    measures,
    roc_aucs,
    targets_of,
)
from toxicity.labels import DEFAULT_THRESHOLDS, LABELS

NAN = float("nan")
FALLBACK = (0.11, 0.22, 0.33, 0.44, 0.55, 0.66)
PARENT = Decision(Calibration((2.0,) * 6, (-0.5,) * 6), FALLBACK)
ENTRY = st.tuples(st.sampled_from([0.0, 1.0, NAN]), st.integers(0, 8).map(lambda eighths: eighths / 8))
ENTRIES = st.lists(st.tuples(*[ENTRY] * 6), min_size=1, max_size=40)


def first_label_only(truth: Any, given: Any) -> tuple[FloatArray, FloatArray]:
    """Targets and probabilities in which only the first label was asked for."""
    targets, probabilities = np.full((len(truth), 6), np.nan), np.full((len(truth), 6), 0.5)
    targets[:, 0], probabilities[:, 0] = truth, given
    return targets, probabilities


def drawn(comments: int, seed: int = 0, slope: float = 1.0, offset: float = 0.0) -> tuple[FloatArray, FloatArray]:
    """Comments whose true log odds are known, and what a network says that sees slope * odds + offset."""
    random = np.random.default_rng(seed)
    scores = random.normal(-1.5, 2, (comments, 6))
    targets = (random.random((comments, 6)) < 1 / (1 + np.exp(-scores))).astype(np.float64)
    return targets, 1 / (1 + np.exp(-(slope * scores + offset)))


def test_targets_are_rows_of_six_with_nan_where_nobody_was_asked() -> None:
    comments = [LabelledComment("bread", (1.0, None, 0.0, None, 0.0, 1.0)), LabelledComment("cheese", (None,) * 6)]
    np.testing.assert_array_equal(targets_of(comments), [[1, NAN, 0, NAN, 0, 1], [NAN] * 6])
    assert targets_of([]).shape == (0, 6)


@given(ENTRIES)
def test_roc_auc_is_the_share_of_pairs_in_which_the_positive_comes_first(rows: list[Any]) -> None:
    targets, probabilities = np.moveaxis(np.array(rows), 2, 0)
    aucs = roc_aucs(targets, probabilities)
    for column, label in enumerate(LABELS):
        positives = probabilities[targets[:, column] == 1, column]
        negatives = probabilities[targets[:, column] == 0, column]
        pairs = np.subtract.outer(positives, negatives)
        if pairs.size:
            assert aucs.pop(label) == pytest.approx((np.sum(pairs > 0) + np.sum(pairs == 0) / 2) / pairs.size)
    assert aucs == {}


@given(ENTRIES)
def test_a_comments_log_loss_is_the_mean_over_the_labels_that_were_asked_for(rows: list[Any]) -> None:
    targets, probabilities = np.moveaxis(np.array(rows), 2, 0)
    clipped = np.clip(probabilities, 1e-6, 1 - 1e-6)
    for loss, truth, given_here in zip(log_losses(targets, probabilities), targets, clipped, strict=True):
        asked = np.isfinite(truth)
        found = -np.log(np.where(truth == 1, given_here, 1 - given_here)[asked])
        assert loss == pytest.approx(found.mean()) if asked.any() else np.isnan(loss)


@settings(max_examples=25)
@given(ENTRIES, st.floats(0, 1))
def test_what_is_said_where_nobody_was_asked_changes_no_measure(rows: list[Any], said: float) -> None:
    targets, probabilities = np.moveaxis(np.array(rows), 2, 0)
    otherwise = np.where(np.isnan(targets), said, probabilities)
    assert measures(targets, otherwise, DEFAULT_THRESHOLDS) == measures(targets, probabilities, DEFAULT_THRESHOLDS)


def test_certainty_that_is_wrong_costs_much_and_not_infinitely_much() -> None:
    losses = log_losses(*first_label_only([1, 0, 1], [0.0, 1.0, 1.0]))
    np.testing.assert_allclose(losses, [13.8155, 13.8155, 0], atol=1e-4)


def test_measures_count_hits_at_each_labels_threshold() -> None:
    targets, probabilities = first_label_only([1, 1, 1, 0, 0, 0, NAN], [0.9, 0.6, 0.2, 0.6, 0.3, 0.1, 0.9])
    found = measures(targets, probabilities, (0.6, *DEFAULT_THRESHOLDS[1:]))
    assert found.pop("log_loss") == pytest.approx(np.log([0.9, 0.6, 0.2, 0.4, 0.7, 0.9]).mean() * -1)
    assert (
        {name: round(value, 6) for name, value in found.items()}
        == {
            "comments": 7,
            "mean_roc_auc": round(6.5 / 9, 6),
            "toxic.roc_auc": round(6.5 / 9, 6),
            "toxic.positives": 3,
            "toxic.precision": round(2 / 3, 6),  # the two at 0.6 are ticked
            "toxic.recall": round(2 / 3, 6),
            "toxic.f1": round(2 / 3, 6),
            **{f"{label}.positives": 0 for label in LABELS[1:]},
        }
    )


def test_the_mean_roc_auc_is_over_the_labels_that_have_one() -> None:
    targets, probabilities = drawn(200)
    targets[:, 3], targets[:, 4], targets[:, 5] = 0, 1, np.nan
    found = measures(targets, probabilities, DEFAULT_THRESHOLDS)
    assert found["mean_roc_auc"] == pytest.approx(np.mean([found[f"{label}.roc_auc"] for label in LABELS[:3]]))
    assert not {f"{label}.roc_auc" for label in LABELS[3:]} & found.keys()
    assert found["insult.recall"] == np.mean(probabilities[:, 4] >= 0.5)
    assert "threat.recall" not in found


@pytest.mark.parametrize("comments", [0, 3])
def test_without_any_asked_label_there_is_nothing_to_measure(comments: int) -> None:
    targets, probabilities = np.full((comments, 6), np.nan), np.full((comments, 6), 0.5)
    nothing = {"comments": comments, **{f"{label}.positives": 0 for label in LABELS}}
    assert measures(targets, probabilities, DEFAULT_THRESHOLDS) == nothing


def test_a_label_that_is_never_ticked_has_no_precision_and_a_recall_of_nought() -> None:
    found = measures(*first_label_only([1, 0], [0.2, 0.1]), DEFAULT_THRESHOLDS)
    assert (found["toxic.recall"], found["toxic.f1"], "toxic.precision" in found) == (0, 0, False)


# Every probability lies well inside the range that thresholds are kept to, and both kinds are often enough.
TRUTH = st.lists(st.sampled_from([0, 1]), min_size=24, max_size=60)
GIVEN = st.lists(st.floats(0.03, 0.97), min_size=60, max_size=60)


def precision_and_recall(truth: FloatArray, given: FloatArray, threshold: float) -> tuple[float, float]:
    ticks = given >= threshold
    hits = float((ticks & (truth == 1)).sum())
    return hits / max(ticks.sum(), 1), hits / truth.sum()


def f1(truth: FloatArray, given: FloatArray, threshold: float) -> float:
    precision, recall = precision_and_recall(truth, given, threshold)
    return 2 * precision * recall / max(precision + recall, 1e-12)


def one_label(truth: list[int], given: list[float]) -> tuple[FloatArray, FloatArray]:
    assume(min(truth.count(0), truth.count(1)) >= LEAST_OF_EACH)
    return np.array(truth, np.float64), np.array(given[: len(truth)])


def test_a_threshold_separates_probabilities_that_are_next_to_each_other() -> None:
    above = np.nextafter(0.5, 1)
    truth, given = np.array([0.0] * 12 + [1.0] * 12), np.array([0.5] * 12 + [above] * 12)
    assert choose_thresholds(*first_label_only(truth, given), FALLBACK)[0] == above


@given(TRUTH, GIVEN)
def test_no_threshold_has_a_better_f1_than_the_chosen_one(truth_list: list[int], given_list: list[float]) -> None:
    truth, given = one_label(truth_list, given_list)
    chosen = choose_thresholds(*first_label_only(truth, given), FALLBACK)
    best = max(f1(truth, given, threshold) for threshold in given)
    assert f1(truth, given, chosen[0]) == pytest.approx(best)
    assert chosen[1:] == FALLBACK[1:]


@given(TRUTH, GIVEN, st.floats(0.05, 1))
def test_precision_reaches_its_floor_where_any_threshold_does_and_no_lower_one_will_do(
    truth_list: list[int], given_list: list[float], floor: float
) -> None:
    truth, given = one_label(truth_list, given_list)
    chosen = choose_thresholds(*first_label_only(truth, given), FALLBACK, floor)[0]
    precision, recall = precision_and_recall(truth, given, chosen)
    everywhere = [precision_and_recall(truth, given, threshold) for threshold in given]
    reaching = [pair for pair in everywhere if pair[0] >= floor]
    if reaching:
        assert precision >= floor
        assert recall == max(pair[1] for pair in reaching)
    else:
        assert (precision, recall) == max(everywhere)


@given(TRUTH, st.lists(st.floats(0, 1), min_size=60, max_size=60), st.sampled_from([0.0, 0.9]))
def test_a_threshold_stays_away_from_0_and_1(truth_list: list[int], given_list: list[float], floor: float) -> None:
    truth, given = one_label(truth_list, given_list)
    chosen = choose_thresholds(*first_label_only(truth, given), FALLBACK, floor)[0]
    assert THRESHOLD_RANGE[0] <= chosen <= THRESHOLD_RANGE[1]


def test_a_threshold_lies_between_the_nearest_two_probabilities_too() -> None:
    truth, given = np.repeat([0.0, 1.0], 20), np.repeat([0.50001, 0.50003], 20)
    assert 0.50001 < choose_thresholds(*first_label_only(truth, given), FALLBACK)[0] < 0.50003


def test_a_threshold_stands_in_the_middle_of_a_gap() -> None:
    truth, given = np.repeat([0.0, 1.0], 20), np.repeat([0.2, 0.6], 20)
    assert choose_thresholds(*first_label_only(truth, given), FALLBACK)[0] == pytest.approx(0.4)


@pytest.mark.parametrize(("positives", "negatives"), [(0, 50), (9, 50), (50, 9), (50, 0)])
def test_a_label_with_too_few_of_one_kind_keeps_what_it_has(positives: int, negatives: int) -> None:
    truth = np.array([1.0] * positives + [0.0] * negatives)
    targets, probabilities = first_label_only(truth, np.linspace(0.9, 0.1, len(truth)))
    assert choose(targets, probabilities, PARENT, 0.9) == PARENT
    assert choose(targets, probabilities, Decision()) == Decision()


@pytest.mark.parametrize(("slope", "offset"), [(0.4, 0.0), (1.0, 2.0), (2.5, -1.5)])
def test_a_calibration_mends_probabilities_that_are_shifted_or_too_sure(slope: float, offset: float) -> None:
    targets, shifted = drawn(600, slope=slope, offset=offset)
    others, others_shifted = drawn(4000, seed=1, slope=slope, offset=offset)
    _, true_probabilities = drawn(4000, seed=1)
    calibration = fit_calibration(targets, shifted)
    mended = np.mean(log_losses(others, calibration(others_shifted)))
    assert mended == pytest.approx(np.mean(log_losses(others, true_probabilities)), rel=0.03)
    assert mended < 0.99 * np.mean(log_losses(others, others_shifted))
    aucs = roc_aucs(others, others_shifted)
    assert roc_aucs(others, calibration(others_shifted)) == pytest.approx(aucs, abs=1e-4)


def test_what_is_calibrated_already_is_left_as_it_is_or_nearly() -> None:
    calibration = fit_calibration(*drawn(600))
    np.testing.assert_allclose(calibration.slopes, 1, atol=0.25)
    np.testing.assert_allclose(calibration.offsets, 0, atol=0.35)
    assert (1.0, 0.0) in zip(calibration.slopes, calibration.offsets, strict=True)


@pytest.mark.parametrize("said", ["nothing but the truth", "the contrary", "one and the same"])
def test_a_calibration_of_what_says_all_or_nothing_is_still_one(said: str) -> None:
    truth = np.repeat([0.0, 1.0], 15)
    given = {"nothing but the truth": truth, "the contrary": 1 - truth, "one and the same": np.full(30, 0.3)}[said]
    targets, probabilities = first_label_only(truth, given)
    decision = choose(targets, probabilities, PARENT)  # raises where it is none
    losses = [np.nanmean(log_losses(targets, each)) for each in (decision.calibration(probabilities), probabilities)]
    assert losses[0] <= losses[1] + 1e-6
    assert 0 < decision.thresholds[0] < 1


def test_few_comments_move_a_calibration_only_a_little() -> None:
    def slopes(comments: int) -> npt.NDArray[np.float64]:
        truth = np.arange(comments) % 2
        targets, probabilities = first_label_only(truth, np.where(truth == 1, 0.6, 0.4))
        return np.array(fit_calibration(targets, probabilities).slopes)

    few, many = slopes(2 * LEAST_OF_EACH)[0], slopes(2000)[0]
    assert 1 < few < many / 2


def test_thresholds_are_chosen_on_calibrated_probabilities() -> None:
    targets, shifted = drawn(600, offset=-2.5)
    decision = choose(targets, shifted, PARENT, 0.8)
    assert decision.calibration == fit_calibration(targets, shifted)
    assert decision.thresholds == choose_thresholds(targets, decision.calibration(shifted), FALLBACK, 0.8)
    found = measures(targets, decision.calibration(shifted), decision.thresholds)
    assert min(found[f"{label}.precision"] for label in LABELS) >= 0.8
    assert logit(np.array(decision.thresholds)).min() > -1  # on the raw ones, thresholds would be far lower
