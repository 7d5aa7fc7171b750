"""One training run: what it learns, what it leaves alone, that it can be repeated and ended."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxicity.classifier import Classifier, build_classifier
from toxicity.comments import LabelledComment
from toxicity.fine_tuning import (
    Progress,
    Recipe,
    TrainingPlan,
    _schedule,
    _shuffled_batches,
    corpus_recipe,
    cross_entropy,
    fine_tune,
    positive_weights,
    rate_factor,
    replay_indices,
)
from toxicity.predicting import FloatArray
from toxicity.settings import EMBEDDED

pytestmark = pytest.mark.tensorflow

RUDE, KIND = (1.0, 0.0, 1.0, 0.0, 1.0, 0.0), (0.0,) * 6
COMMENTS = [
    LabelledComment("Go away, you silly potato!", RUDE),
    LabelledComment("You muttonhead.", RUDE),
    LabelledComment("Thank you for the photo of the bridge.", KIND),
    LabelledComment("I have added a source to the second paragraph of the article.", KIND),
]
TEXTS = [comment.text for comment in COMMENTS]
PLAN = TrainingPlan(epochs=4, learning_rate=1e-4, batch_size=2, seed=3)
ONE_SHAPE = TrainingPlan(epochs=6, learning_rate=1e-4, batch_size=4)  # compiled once: compiling is what takes long


@dataclass
class Run:
    before: dict[str, FloatArray]
    after: dict[str, FloatArray]
    answers_before: FloatArray
    answers: FloatArray
    reports: list[Progress]
    loss: float


def train_embedded(data_dir: Path) -> Run:
    classifier = build_classifier(EMBEDDED, data_dir, 32)
    before, answers_before, reports = classifier.weights(), classifier.predict(TEXTS), list[Progress]()
    loss = fine_tune(classifier, COMMENTS, ONE_SHAPE, reports.append).loss
    return Run(before, classifier.weights(), answers_before, classifier.predict(TEXTS), reports, loss)


@pytest.fixture(scope="module")
def trained(shared_data_dir: Path) -> Run:
    return train_embedded(shared_data_dir)


@pytest.fixture
def tiny(tiny_encoder: Path, tmp_path: Path) -> Classifier:
    return build_classifier(str(tiny_encoder), tmp_path, 32)


def test_loss_falls_and_answers_move_towards_the_targets(trained: Run) -> None:
    losses = [progress.loss for progress in trained.reports]
    assert np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2])
    moved = trained.answers - trained.answers_before
    for row, comment in enumerate(COMMENTS):
        for column, target in enumerate(comment.targets):
            assert (moved[row, column] > 0) == (target == 1.0)


def test_every_step_is_reported_and_the_last_epochs_mean_loss_returned(tiny: Classifier) -> None:
    reports: list[Progress] = []
    run = fine_tune(tiny, COMMENTS, PLAN, reports.append)
    assert [(progress.step, progress.steps) for progress in reports] == [(step, 8) for step in range(1, 9)]
    assert run.loss == pytest.approx(np.mean([progress.loss for progress in reports[-2:]]))
    assert (run.epochs, run.watched) == (4, ())


class Watch:
    """Says these losses, one after each epoch, and remembers the weights that it said them of."""

    def __init__(self, classifier: Classifier, *losses: float) -> None:
        self.classifier = classifier
        self.losses = losses
        self.seen: list[dict[str, FloatArray]] = []

    def __call__(self) -> float:
        self.seen.append(self.classifier.weights())
        return self.losses[len(self.seen) - 1]


def assert_weights_are(classifier: Classifier, expected: dict[str, FloatArray]) -> None:
    for name, value in classifier.weights().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_the_first_epoch_that_lowers_nothing_is_the_last_and_the_best_weights_come_back(tiny: Classifier) -> None:
    watch, reports = Watch(tiny, 0.5, 0.4, 0.45), list[Progress]()
    run = fine_tune(tiny, COMMENTS, PLAN, reports.append, watch)
    assert (run.epochs, run.watched) == (3, (0.5, 0.4, 0.45))
    assert [progress.step for progress in reports] == list(range(1, 7))
    assert run.loss == pytest.approx(np.mean([progress.loss for progress in reports[-2:]]))
    assert_weights_are(tiny, watch.seen[1])
    assert (watch.seen[1]["dense_output/bias"] != watch.seen[2]["dense_output/bias"]).any()


def test_an_epoch_that_changes_nothing_of_the_loss_lowers_nothing(tiny: Classifier) -> None:
    watch = Watch(tiny, 0.5, 0.5)
    assert fine_tune(tiny, COMMENTS, PLAN, watch=watch).watched == (0.5, 0.5)
    assert_weights_are(tiny, watch.seen[0])


def test_as_long_as_the_watched_loss_falls_every_epoch_is_run(tiny: Classifier) -> None:
    watch = Watch(tiny, 0.5, 0.4, 0.3, 0.2)
    run = fine_tune(tiny, COMMENTS, PLAN, watch=watch)
    assert (run.epochs, run.watched) == (4, (0.5, 0.4, 0.3, 0.2))
    assert_weights_are(tiny, watch.seen[3])


def test_watching_does_not_change_what_is_learned(tiny: Classifier, tiny_encoder: Path, tmp_path: Path) -> None:
    other = build_classifier(str(tiny_encoder), tmp_path, 32)
    fine_tune(tiny, COMMENTS, PLAN)
    fine_tune(other, COMMENTS, PLAN, watch=Watch(other, 4, 3, 2, 1))
    assert_weights_are(other, tiny.weights())


def test_every_parameter_but_the_poolers_learns(trained: Run) -> None:
    unchanged = {name for name, value in trained.after.items() if np.array_equal(value, trained.before[name])}
    assert unchanged == {"encoder/bert/pooler/dense/kernel", "encoder/bert/pooler/dense/bias"}
    assert all(np.isfinite(value).all() for value in trained.after.values())


def test_a_run_with_the_same_seed_gives_the_same_weights(trained: Run, shared_data_dir: Path) -> None:
    again = train_embedded(shared_data_dir)
    for name, value in again.after.items():
        np.testing.assert_allclose(value, trained.after[name], atol=1e-6, err_msg=name)


def test_a_label_that_nobody_was_asked_for_is_not_trained(tiny: Classifier) -> None:
    masked = [LabelledComment(text, (1.0, None, 1.0, 1.0, 1.0, 1.0)) for text in TEXTS]
    before = tiny.weights()
    fine_tune(tiny, masked, TrainingPlan(3, 1e-2))
    after = tiny.weights()
    assert after["dense_output/bias"][1] == before["dense_output/bias"][1]
    shrunk = after["dense_output/kernel"][:, 1] / before["dense_output/kernel"][:, 1]
    np.testing.assert_allclose(shrunk, shrunk[0], rtol=1e-5)  # weight decay and nothing else
    assert 0.99 < shrunk[0] < 1
    others = [0, 2, 3, 4, 5]
    assert (after["dense_output/bias"][others] > before["dense_output/bias"][others]).all()


def test_a_label_that_only_some_were_asked_for_is_trained_on_those(tiny: Classifier) -> None:
    before = tiny.predict(TEXTS)[:, 1]
    targets: list[float | None] = [1.0, None, None, None]
    fine_tune(tiny, [LabelledComment(text, (0.0, target, *KIND[2:])) for text, target in zip(TEXTS, targets, strict=True)], PLAN)
    assert (tiny.predict(TEXTS)[:, 1] > before).all()


def test_in_a_corpus_a_positive_counts_as_often_as_its_labels_weight() -> None:
    targets = np.array([[1.0] * 6, [0.0] * 6], np.float32)
    probabilities = np.full((2, 6), 0.3, np.float32)
    losses = np.array(cross_entropy(targets, probabilities))
    np.testing.assert_allclose(losses, [[-np.log(0.3)] * 6, [-np.log(0.7)] * 6], rtol=1e-5)
    weights = (2.1, 6.4, 3.0, 12.2, 3.1, 7.3)
    weighted = np.array(corpus_recipe(weights).loss(targets, probabilities))
    np.testing.assert_allclose(weighted, losses * np.array([weights, (1.0,) * 6]), rtol=1e-5)


def test_positives_weigh_the_root_of_the_negatives_that_there_are_to_one() -> None:
    rows = [(1.0, 0.0, 1.0, 0.0, None, 0.0)] * 10 + [(0.0, 0.0, 1.0, 0.0, None, 0.0)] * 89 + [(0.0, 0.0, 1.0, 1.0, 1.0, None)]
    comments = [LabelledComment("bread", row) for row in [*rows, *[(0.0, 0.0, 0.0, 0.0, None, 0.0)] * 901]]
    # 991 to 10, none at all, 901 to 100, 1000 to 1 (cut off), no negative, none
    assert positive_weights(comments) == (10.0, 1.0, 3.0, 20.0, 1.0, 1.0)


def test_the_head_learns_ten_times_as_fast_as_the_encoder() -> None:
    assert (rate_factor("dense_output/kernel:0"), rate_factor("layer/kernel:0")) == (10.0, 1.0)


def test_a_recipe_says_what_is_minimized_and_how_fast_each_variable_learns(tiny: Classifier) -> None:
    before = tiny.weights()
    still = Recipe(rate_factor=lambda variable: 0.0 if variable.startswith("dense_output") else 3.0)
    fine_tune(tiny, COMMENTS, PLAN, recipe=still)
    after = tiny.weights()
    for name in ("dense_output/kernel", "dense_output/bias"):
        np.testing.assert_array_equal(after[name], before[name])
    assert (after["encoder/layer/kernel"] != before["encoder/layer/kernel"]).all()
    bias = after["dense_output/bias"]
    fine_tune(tiny, COMMENTS, PLAN, recipe=Recipe(loss=lambda targets, probabilities: cross_entropy(1 - targets, probabilities)))
    assert (tiny.weights()["dense_output/bias"][[1, 3, 5]] > bias[[1, 3, 5]]).all()  # nobody said so, but the recipe turned it


def test_no_comments_are_refused(tiny: Classifier) -> None:
    with pytest.raises(ValueError, match="0 comments"):
        fine_tune(tiny, [], PLAN)


def test_an_exception_from_report_ends_the_run(tiny: Classifier) -> None:
    steps = []

    def report(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fine_tune(tiny, COMMENTS, PLAN, report)
    assert steps == [1, 2, 3]


def test_a_loss_that_is_no_number_ends_the_run(tiny: Classifier) -> None:
    tiny.set_weights({name: np.full_like(value, np.nan) for name, value in tiny.weights().items()})
    with pytest.raises(ValueError, match=r"step 1 of 8, with the learning rate .*: lower it"):
        fine_tune(tiny, COMMENTS, PLAN)


@given(
    st.lists(st.sampled_from([(0.0,) * 6, (1.0,) + (0.0,) * 5, (None,) * 6]), max_size=300), st.integers(0, 80), st.integers(0, 9)
)
def test_replay_draws_so_many_of_the_older_ones_each_once(targets: list[tuple[float | None, ...]], count: int, seed: int) -> None:
    drawn = replay_indices(targets, count, seed)
    assert len(drawn) == min(len(targets), count)
    assert drawn == sorted(set(drawn))
    assert all(0 <= index < len(targets) for index in drawn)
    assert drawn == replay_indices(targets, count, seed)


def test_replay_draws_the_few_threats_from_among_the_many_clean_ones() -> None:
    clean, toxic, threat = (0.0,) * 6, (1.0,) + (0.0,) * 5, (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    targets = [clean] * 1000 + [toxic] * 100 + [threat] * 3
    for seed in range(5):
        drawn = replay_indices(targets, 40, seed)
        assert {1100, 1101, 1102} <= set(drawn)
        assert 15 <= sum(1000 <= index < 1100 for index in drawn) <= 25
        assert sum(index < 1000 for index in drawn) >= 15


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 1001])
def test_the_rate_rises_for_a_tenth_of_the_steps_and_then_falls(steps: int) -> None:
    rates = [_schedule(step, steps) for step in range(steps)]
    peak = int(np.argmax(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert peak <= steps // 10
    assert rates == [*sorted(rates[: peak + 1]), *sorted(rates[peak + 1 :], reverse=True)]
    assert rates[peak] > 0.85
    assert rates[-1] <= 1 / steps + 1e-9


@given(st.lists(st.integers(1, 128), min_size=1, max_size=200), st.integers(1, 16), st.integers(0, 5))
def test_shuffled_batches_hold_every_comment_once(lengths: list[int], size: int, seed: int) -> None:
    batches = _shuffled_batches(lengths, size, seed)
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // size)
