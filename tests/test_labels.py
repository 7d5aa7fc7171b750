"""Labels: their order, the names that mean them, ticks at the threshold, confidence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toxicity.labels import ALIASES, DEFAULT_THRESHOLDS, LABELS, canonical_label, confidence, ticked

SIX_PROBABILITIES = st.lists(st.floats(0, 1), min_size=6, max_size=6)
SIX_THRESHOLDS = st.lists(st.floats(0.01, 0.99), min_size=6, max_size=6)
UNEVEN_THRESHOLDS = (0.2, 0.8, 0.5, 0.1, 0.9, 0.4)


def test_labels_stand_in_the_challenges_order() -> None:
    assert LABELS == ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("TOXIC", "toxic"),
        ("Severe Toxic", "severe_toxic"),
        ("severe-toxic", "severe_toxic"),
        ("  Severe -- Toxic ", "severe_toxic"),
        ("Identity/Hate", "identity_hate"),
        ("Hate speech", "identity_hate"),
        ("Severe-Toxicity", "severe_toxic"),
        ("Profanity", "obscene"),
        ("Insulting!", "insult"),
    ],
)
def test_a_name_means_its_label_whatever_its_case_spaces_hyphens_or_alias(name: str, label: str) -> None:
    assert canonical_label(name) == label


@pytest.mark.parametrize("name", ["", " ", "-", "spam", "toxic waste", "severetoxic", "non-toxic", "not toxic", "токсичный", "0"])
def test_a_name_of_something_else_means_no_label(name: str) -> None:
    assert canonical_label(name) is None


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_is_written_as_it_is_looked_up_and_means_one_of_the_six(alias: str) -> None:
    assert canonical_label(alias) in LABELS
    assert alias not in LABELS


@settings(deadline=None)
@given(st.text())
def test_any_text_means_one_of_the_six_or_nothing(name: str) -> None:
    assert canonical_label(name) in (*LABELS, None)


def test_a_label_is_ticked_at_its_threshold_and_not_just_below() -> None:
    assert ticked((0.5, 0.49999, 0.50001, 0.0, 1.0, 0.5)) == ["toxic", "obscene", "insult", "identity_hate"]


def test_each_label_has_its_own_threshold() -> None:
    probabilities = (0.2, 0.79, 0.5, 0.09, 0.9, 0.41)
    assert ticked(probabilities, UNEVEN_THRESHOLDS) == ["toxic", "obscene", "insult", "identity_hate"]


@pytest.mark.parametrize("count", [0, 5, 7])
def test_a_wrong_number_of_probabilities_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="zip"):
        ticked((0.5,) * count)


@pytest.mark.parametrize("thresholds", [DEFAULT_THRESHOLDS, UNEVEN_THRESHOLDS])
def test_confidence_is_0_where_one_label_sits_on_its_threshold(thresholds: tuple[float, ...]) -> None:
    assert confidence((1.0, 1.0, 0.0, thresholds[3], 0.0, 1.0), thresholds) == 0.0


@pytest.mark.parametrize("thresholds", [DEFAULT_THRESHOLDS, UNEVEN_THRESHOLDS])
def test_confidence_is_1_where_every_label_is_certain(thresholds: tuple[float, ...]) -> None:
    assert confidence((1.0, 0.0, 1.0, 0.0, 0.0, 1.0), thresholds) == 1.0


@pytest.mark.parametrize(("probability", "expected"), [(0.1, 0.5), (0.6, 0.5), (0.05, 0.75), (0.8, 0.75)])
def test_confidence_counts_each_side_of_a_threshold_of_0_2_in_full(probability: float, expected: float) -> None:
    assert confidence((0.0, 0.0, probability), (0.5, 0.5, 0.2)) == pytest.approx(expected)


def test_a_comment_is_as_uncertain_as_its_least_certain_label() -> None:
    assert confidence((0.0, 0.0, 0.4, 0.0, 0.9, 0.0)) == pytest.approx(0.2)


@settings(deadline=None)
@given(SIX_PROBABILITIES, SIX_THRESHOLDS)
def test_confidence_lies_between_0_and_1(probabilities: list[float], thresholds: list[float]) -> None:
    assert 0.0 <= confidence(probabilities, thresholds) <= 1.0
