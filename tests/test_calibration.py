"""Calibration: probabilities that mean more, in the order that they had."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxicity.calibration import CLIPPED, IDENTITY, Calibration, Decision, logit, undo_weights
from toxicity.labels import DEFAULT_THRESHOLDS

PROBABILITIES = st.lists(st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6), min_size=1, max_size=20)
SLOPES = st.tuples(*[st.floats(0.04, 25)] * 6)  # a little more than a fit may give
OFFSETS = st.tuples(*[st.floats(-12, 12)] * 6)
SOME = Calibration((0.5, 2.0, 1.0, 3.0, 1.0, 0.1), (0.0, 1.0, -1.0, 0.5, 0.0, -3.0))


@given(PROBABILITIES, SLOPES, OFFSETS)
def test_calibrated_ones_are_probabilities_in_the_same_order(
    rows: list[list[float]], slopes: tuple[float, ...], offsets: tuple[float, ...]
) -> None:
    probabilities = np.array(rows, np.float32)
    calibrated = Calibration(slopes, offsets)(probabilities)
    assert calibrated.dtype == np.float32
    assert calibrated.shape == probabilities.shape
    assert ((calibrated >= 0) & (calibrated <= 1)).all()
    for column in range(6):
        order = np.argsort(probabilities[:, column], kind="stable")
        assert (np.diff(calibrated[order, column]) >= 0).all()


@given(st.lists(st.integers(1, 99), min_size=2, max_size=30, unique=True))
def test_no_two_different_probabilities_become_one(hundredths: list[int]) -> None:
    probabilities = np.repeat(np.array(sorted(hundredths))[:, None] / 100, 6, axis=1)
    assert (np.diff(SOME(probabilities), axis=0) > 0).all()


@given(st.floats(0.001, 0.999), SLOPES, OFFSETS)
def test_the_calibrated_odds_are_a_power_of_the_odds_times_a_factor(
    probability: float, slopes: tuple[float, ...], offsets: tuple[float, ...]
) -> None:
    calibrated = Calibration(slopes, offsets)(np.full((1, 6), probability))[0]
    for column in range(6):
        odds = (probability / (1 - probability)) ** slopes[column] * np.exp(offsets[column])
        assert calibrated[column] == pytest.approx(odds / (1 + odds), rel=1e-5)


@given(PROBABILITIES)
def test_without_a_calibration_every_probability_stays_as_it_is(rows: list[list[float]]) -> None:
    probabilities = np.array(rows, np.float32)
    np.testing.assert_array_equal(Calibration()(probabilities), probabilities)
    np.testing.assert_array_equal(Decision().calibration(probabilities), probabilities)
    assert (IDENTITY, Decision().thresholds) == (Calibration(), DEFAULT_THRESHOLDS)


def test_each_label_is_calibrated_by_its_own_slope_and_offset() -> None:
    moved = SOME(np.full((1, 6), 0.8, np.float32))[0]
    np.testing.assert_allclose(moved, [2 / 3, 0.977524, 0.595390, 0.990612, 0.8, 0.054097], rtol=1e-4)


def test_certainty_stays_a_probability_and_no_overflow() -> None:
    certain = np.array([[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]], np.float32)
    calibrated = Calibration((25.0,) * 6, (-12.0, 12.0) * 3)(certain)
    np.testing.assert_allclose(calibrated, certain, atol=1e-6)


@given(st.floats(0, 1))
def test_a_logit_is_finite_and_its_sigmoid_the_probability(probability: float) -> None:
    score = float(logit(np.array([probability]))[0])
    assert np.isfinite(score)
    assert 1 / (1 + np.exp(-score)) == pytest.approx(probability, abs=2 * CLIPPED)


@pytest.mark.parametrize(
    ("slopes", "offsets"),
    [
        pytest.param((1.0,) * 5, (0.0,) * 5, id="five"),
        pytest.param((1.0,) * 6, (0.0,) * 5, id="six and five"),
        pytest.param((), (), id="none"),
        pytest.param((1.0,) * 5 + (0.0,), (0.0,) * 6, id="a slope of nought"),
        pytest.param((1.0,) * 5 + (-1.0,), (0.0,) * 6, id="a slope that turns the order round"),
        pytest.param((float("nan"),) * 6, (0.0,) * 6, id="slopes that are no numbers"),
        pytest.param((1.0,) * 6, (float("inf"),) * 6, id="infinite offsets"),
    ],
)
def test_what_is_no_calibration_is_refused(slopes: tuple[float, ...], offsets: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"six positive slopes|inhomogeneous"):
        Calibration(slopes, offsets)


@given(st.floats(0.001, 0.999), st.tuples(*[st.floats(1, 30)] * 6))
def test_weights_of_positives_are_divided_out_of_the_odds_again_and_ticks_stay(
    probability: float, weights: tuple[float, ...]
) -> None:
    odds = np.array(weights) * probability / (1 - probability)
    learned = (odds / (1 + odds))[None]
    decision = undo_weights(weights)
    calibrated = decision.calibration(learned)[0]
    np.testing.assert_allclose(calibrated, probability, atol=2e-4)
    clear = np.abs(learned[0] - 0.5) > 1e-3
    assert ((calibrated >= decision.thresholds) == (learned[0] >= 0.5))[clear].all()


def test_where_positives_were_not_weighted_there_is_nothing_to_undo() -> None:
    assert undo_weights((1.0,) * 6) == Decision()
