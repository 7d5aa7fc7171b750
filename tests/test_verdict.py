"""The verdict: what goes into service, what does not, and that it says why."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toxicity.verdict
from toxicity.calibration import Calibration, Decision, logit
from toxicity.evaluation import FloatArray, log_losses, roc_aucs
from toxicity.labels import LABELS
from toxicity.manifest import Verdict
from toxicity.verdict import (
    AUC_MARGIN,
    HOLD_OUT,
    LEAST_FOR_AUC,
    LEAST_HELD_OUT,
    REFERENCE,
    Answers,
    Yardstick,
    enough_to_judge,
    labels_without_evidence,
)

TOXIC, THREAT = LABELS.index("toxic"), LABELS.index("threat")
WORSE_LOSS = r"its log loss is (\d\.\d{4}), that of (\S+) (\d\.\d{4}) \(margin (\d\.\d{4})\)"
WORSE_AUC = r"its mean ROC AUC over ([a-z_, ]+) is (\d\.\d{4}), that of (\S+) (\d\.\d{4}) \(margin (\d\.\d{4})\)"


def answers(probabilities: dict[str, FloatArray]) -> dict[str, Answers]:
    return {name: Answers(each) for name, each in probabilities.items()}


def judge(yardstick: Yardstick, candidate: FloatArray, rivals: dict[str, FloatArray]) -> Verdict:
    """Judge versions that have no calibration yet, and thresholds of a half."""
    return toxicity.verdict.judge(yardstick, Answers(candidate), answers(rivals))


def is_better(yardstick: Yardstick, candidate: FloatArray, rivals: dict[str, FloatArray]) -> bool:
    return toxicity.verdict.is_better(yardstick, Answers(candidate), answers(rivals))


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    """Judging is quicker so, and its margins are a little less exact."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toxicity.verdict, "RESAMPLES", 20)
        yield


class Comments:
    """Held-out comments of which two labels were asked, and versions that see them more or less clearly."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.targets = np.full((count, 6), np.nan)
        self.targets[:, TOXIC] = np.arange(count) % 5 < 2
        self.targets[:, THREAT] = np.arange(count) % 5 == 0
        self.yardstick = Yardstick(self.targets, HOLD_OUT, count)

    def seen(self, clearly: float) -> FloatArray:
        """Probabilities of a version that separates positives from negatives by so many standard deviations."""
        scores = clearly * (np.nan_to_num(self.targets) - 0.5) + self.random.normal(0, 1, self.targets.shape)
        probabilities: FloatArray = 1 / (1 + np.exp(-clearly * scores))
        return probabilities

    def judge(self, candidate: FloatArray, *rivals: FloatArray) -> Verdict:
        return judge(self.yardstick, candidate, {f"v{number}": rival for number, rival in enumerate(rivals, 1)})


@pytest.fixture(scope="module")
def comments() -> Comments:
    return Comments(400)


@pytest.fixture(scope="module")
def live(comments: Comments) -> FloatArray:
    return comments.seen(2.0)


def reason(verdict: Verdict, pattern: str) -> re.Match[str]:
    found = [match for each in verdict.reasons if (match := re.fullmatch(pattern, each))]
    assert len(found) == 1, verdict.reasons
    return found[0]


def test_what_answers_as_the_live_version_does_is_accepted(comments: Comments, live: FloatArray) -> None:
    assert comments.judge(live.copy(), live) == Verdict(True, ("not worse than v1",), HOLD_OUT, 400)
    assert not is_better(comments.yardstick, live.copy(), {"v1": live})


def test_what_is_clearly_better_is_accepted(comments: Comments, live: FloatArray) -> None:
    better = comments.seen(4.0)
    assert comments.judge(better, live).accepted
    assert is_better(comments.yardstick, better, {"v1": live})


def test_what_is_clearly_worse_is_rejected_with_what_it_is_worse_in_and_by_how_much(comments: Comments, live: FloatArray) -> None:
    worse = comments.seen(1.0)
    verdict = comments.judge(worse, live)
    assert (verdict.accepted, verdict.judged_on, verdict.comments) == (False, HOLD_OUT, 400)
    assert not is_better(comments.yardstick, worse, {"v1": live})
    ours, name, theirs, margin = reason(verdict, WORSE_LOSS).groups()
    assert name == "v1"
    assert float(ours) > float(theirs) + float(margin) > float(theirs)
    labels, ours, name, theirs, margin = reason(verdict, WORSE_AUC).groups()
    assert (labels, name) == ("toxic, threat", "v1")
    for given_value, probabilities in ((ours, worse), (theirs, live)):
        assert float(given_value) == pytest.approx(np.mean([*roc_aucs(comments.targets, probabilities).values()]), abs=1e-4)
    assert float(ours) < float(theirs) - float(margin) < float(theirs)


def test_it_must_not_be_worse_than_any_of_its_rivals(comments: Comments, live: FloatArray) -> None:
    better = comments.seen(4.0)
    assert comments.judge(better.copy(), live, better).reasons == ("not worse than v1 and v2",)
    verdict = comments.judge(live.copy(), live, better)
    assert not verdict.accepted
    assert (reason(verdict, WORSE_LOSS)[2], reason(verdict, WORSE_AUC)[3]) == ("v2", "v2")
    assert not is_better(comments.yardstick, live, {"v1": comments.seen(1.0), "v2": better})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_rejected_before_anything_is_measured(comments: Comments, live: FloatArray, value: float) -> None:
    broken = live.copy()
    broken[3, 2:] = value
    assert comments.judge(broken, live) == Verdict(False, ("4 of its probabilities are no numbers",), HOLD_OUT, 400)


def test_a_label_of_which_it_says_the_same_of_every_comment_is_rejected(comments: Comments, live: FloatArray) -> None:
    stuck = live.copy()
    stuck[:, THREAT] = 0.125
    verdict = comments.judge(stuck, live)
    assert (verdict.accepted, verdict.reasons) == (False, ("it says 0.125 for threat of every comment",))
    everywhere = comments.judge(np.full_like(live, 0.5), live)
    assert everywhere.reasons == tuple(f"it says 0.500 for {label} of every comment" for label in ("toxic", "threat"))


def test_a_label_that_no_version_has_learned_yet_may_stay_the_same_for_every_comment(
    comments: Comments, live: FloatArray
) -> None:
    never_learned = live.copy()
    never_learned[:, LABELS.index("obscene")] = 0.01
    assert comments.judge(never_learned.copy(), never_learned).accepted


@pytest.mark.parametrize("judged_on", [HOLD_OUT, REFERENCE])
def test_a_label_that_collapsed_is_rejected_however_good_the_others_are(
    comments: Comments, live: FloatArray, judged_on: str
) -> None:
    collapsed = comments.seen(6.0)
    collapsed[:, THREAT] = comments.random.permutation(live[:, THREAT])
    verdict = judge(Yardstick(comments.targets, judged_on, 400), collapsed, {"v1": live})
    assert not verdict.accepted
    assert re.fullmatch(r"threat collapsed: its ROC AUC is 0\.[45]\d\d, and was 0\.9\d\d", verdict.reasons[0])


def test_a_label_in_which_the_live_version_is_no_better_has_not_collapsed(comments: Comments, live: FloatArray) -> None:
    by_chance = live.copy()
    by_chance[:, THREAT] = comments.random.permutation(live[:, THREAT])
    assert comments.judge(by_chance.copy(), by_chance).accepted


def test_a_label_with_hardly_a_positive_is_no_evidence() -> None:
    comments = Comments(200)
    live = comments.seen(2.0)
    comments.targets[:, THREAT] = np.arange(200) < LEAST_FOR_AUC - 1
    turned_round = live.copy()
    turned_round[:, THREAT] = 1 - comments.targets[:, THREAT]
    live[:, THREAT] = 0.01 + 0.98 * comments.targets[:, THREAT]
    verdict = comments.judge(turned_round, live)
    assert not any("AUC" in each for each in verdict.reasons)
    comments.targets[LEAST_FOR_AUC - 1, THREAT] = 1
    assert any(each.startswith("threat collapsed") for each in comments.judge(turned_round, live).reasons)


@pytest.mark.parametrize(("slope", "offset"), [(0.4, 0.0), (2.0, 0.0), (1.0, 2.0), (1.0, -2.0)])
def test_a_loss_that_a_recalibration_mends_is_no_reason(
    comments: Comments, live: FloatArray, slope: float, offset: float
) -> None:
    shifted = 1 / (1 + np.exp(-(slope * logit(live) + offset)))
    losses = [np.nanmean(log_losses(comments.targets, each)) for each in (shifted, live)]
    assert losses[0] > losses[1] + 0.02
    assert comments.judge(shifted, live).accepted


def test_the_same_difference_is_chance_on_few_comments_and_evidence_on_many() -> None:
    few = Comments(60, seed=2)
    live = few.seen(2.0)
    candidate = 1 / (1 + np.exp(-(logit(live) + few.random.normal(0, 0.5, live.shape))))
    assert few.judge(candidate, live).accepted
    margins = []
    for times in (30, 120):
        many = Yardstick(np.tile(few.targets, (times, 1)), HOLD_OUT, 60 * times)
        verdict = judge(many, np.tile(candidate, (times, 1)), {"v1": np.tile(live, (times, 1))})
        assert not verdict.accepted
        margins.append(float(reason(verdict, WORSE_LOSS)[4]))
    assert margins[1] == pytest.approx(margins[0] / 2, abs=1e-4)


def test_comments_that_nobody_was_asked_about_weigh_nothing(comments: Comments, live: FloatArray) -> None:
    worse = comments.seen(1.0)
    with_blanks = Comments(500)
    with_blanks.targets[:] = np.concatenate([comments.targets, np.full((100, 6), np.nan)])
    more_worse, more_live = (np.concatenate([each, with_blanks.seen(1.0)[:100]]) for each in (worse, live))
    found = reason(with_blanks.judge(more_worse, more_live), WORSE_LOSS).groups()
    assert found == reason(comments.judge(worse, live), WORSE_LOSS).groups()


def test_the_same_comments_give_the_same_verdict(comments: Comments, live: FloatArray) -> None:
    worse = comments.seen(1.0)
    assert comments.judge(worse, live) == comments.judge(worse, live)


def test_on_reference_comments_loss_does_not_count_and_the_verdict_says_that_they_judged(
    comments: Comments, live: FloatArray
) -> None:
    yardstick = Yardstick(comments.targets, REFERENCE, 17)
    told = "17 held-out comments were too few to judge by; the reference comments judged"
    verdict = judge(yardstick, np.clip(live, 0.4, 0.6) + live / 1000, {"v0": live})
    assert verdict == Verdict(True, ("not worse than v0", told), REFERENCE, 400)
    rejected = judge(yardstick, comments.seen(1.0), {"v0": live})
    assert (rejected.accepted, rejected.reasons[-1]) == (False, told)
    assert not [each for each in rejected.reasons if "log loss" in each]
    assert float(re.fullmatch(WORSE_AUC, rejected.reasons[0])[5]) >= AUC_MARGIN  # type: ignore[index] # None would fail too
    assert not is_better(yardstick, comments.seen(4.0), {"v0": live})


def test_a_small_loss_on_many_reference_comments_is_within_their_margin() -> None:
    comments = Comments(2000)
    live = comments.seen(2.0)
    slightly_worse = 1 / (1 + np.exp(-(logit(live) + comments.random.normal(0, 0.8, live.shape))))
    lost = np.mean([*roc_aucs(comments.targets, live).values()]) - np.mean([*roc_aucs(comments.targets, slightly_worse).values()])
    assert 0.003 < lost < AUC_MARGIN
    assert judge(Yardstick(comments.targets, REFERENCE, 0), slightly_worse, {"v0": live}).accepted
    assert not comments.judge(slightly_worse, live).accepted


@pytest.mark.parametrize(
    ("count", "positives", "enough"),
    [(LEAST_HELD_OUT, 1, True), (LEAST_HELD_OUT - 1, 20, False), (LEAST_HELD_OUT, 0, False), (0, 0, False), (500, 3, True)],
)
def test_a_hold_out_is_enough_from_so_many_comments_with_a_positive(count: int, positives: int, enough: bool) -> None:
    targets = np.zeros((count, 6))
    targets[:, 3] = np.nan
    targets[:positives, 1] = 1
    assert enough_to_judge(targets) is enough


def test_comments_of_which_no_label_was_asked_are_not_enough() -> None:
    assert not enough_to_judge(np.full((100, 6), np.nan))


@settings(max_examples=15)
@given(st.integers(LEAST_HELD_OUT, 80), st.integers(0, 1000), st.sampled_from([0.0, 1.0, 3.0]), st.integers(0, 30))
def test_on_any_hold_out_there_is_a_verdict_with_a_reason_and_a_copy_is_accepted(
    count: int, seed: int, clearly: float, positives: int
) -> None:
    comments = Comments(count, seed)
    comments.targets[:, TOXIC] = np.arange(count) < positives
    comments.targets[:, THREAT] = 0
    live = comments.seen(2.0)
    verdict = comments.judge(comments.seen(clearly), live)
    assert verdict.reasons
    assert verdict.comments == count
    assert comments.judge(live.copy(), live).accepted


def test_of_versions_that_are_as_good_most_are_accepted_and_of_worse_ones_most_rejected() -> None:
    accepted = {1.8: 0, 1.2: 0}
    pairs = 20
    for seed in range(pairs):
        for clearly in accepted:
            comments = Comments(200, seed)
            comments.targets[:, THREAT] = np.nan
            live = comments.seen(1.8)
            accepted[clearly] += comments.judge(comments.seen(clearly), live).accepted
    assert accepted[1.8] >= 0.65 * pairs
    assert accepted[1.2] <= 0.2 * pairs


def lowered(probabilities: FloatArray, by: float) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(by - logit(probabilities))))


def test_what_unticks_what_the_live_version_ticks_is_rejected_though_it_ranks_as_well(
    comments: Comments, live: FloatArray
) -> None:
    verdict = judge(Yardstick(comments.targets, REFERENCE, 3), lowered(live, 6.0), {"v0": live})
    assert not verdict.accepted
    assert [each for each in verdict.reasons if each.startswith("the F1 of its ticks is 0.")], verdict.reasons


def test_each_version_is_judged_with_the_decision_that_it_is_served_with(comments: Comments, live: FloatArray) -> None:
    undone = Decision(Calibration(offsets=(6.0,) * 6))
    yardstick = Yardstick(comments.targets, REFERENCE, 3)
    lowered_and_undone = Answers(lowered(live, 6.0), undone)
    assert toxicity.verdict.judge(yardstick, lowered_and_undone, answers({"v0": live})).accepted
    assert not toxicity.verdict.judge(
        yardstick, Answers(live, Decision(Calibration(offsets=(-6.0,) * 6))), answers({"v0": live})
    ).accepted


def test_a_label_is_without_evidence_where_it_was_asked_for_and_hardly_ever_there(comments: Comments) -> None:
    assert labels_without_evidence(comments.targets) == []
    few = comments.targets.copy()
    few[:, THREAT] = np.arange(len(few)) < LEAST_FOR_AUC - 1
    assert labels_without_evidence(few) == ["threat"]
