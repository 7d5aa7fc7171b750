"""One training run: what it learns, what it leaves alone, that it can be repeated and ended."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toxicity.classifier import Classifier, FloatArray, build_classifier
from toxicity.comments import LabelledComment
from toxicity.fine_tuning import Progress, TrainingPlan, _schedule, _shuffled_batches, fine_tune, replay_indices
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
class Trained:
    before: dict[str, FloatArray]
    after: dict[str, FloatArray]
    answers_before: FloatArray
    answers: FloatArray
    reports: list[Progress]
    loss: float


def train_embedded(data_dir: Path) -> Trained:
    classifier = build_classifier(EMBEDDED, data_dir, 32)
    before, answers_before, reports = classifier.weights(), classifier.predict(TEXTS), list[Progress]()
    loss = fine_tune(classifier, COMMENTS, ONE_SHAPE, reports.append)
    return Trained(before, classifier.weights(), answers_before, classifier.predict(TEXTS), reports, loss)


@pytest.fixture(scope="module")
def trained(shared_data_dir: Path) -> Trained:
    return train_embedded(shared_data_dir)


@pytest.fixture
def tiny(tiny_encoder: Path, tmp_path: Path) -> Classifier:
    return build_classifier(str(tiny_encoder), tmp_path, 32)


def test_loss_falls_and_answers_move_towards_the_targets(trained: Trained) -> None:
    losses = [progress.loss for progress in trained.reports]
    assert np.mean(losses[-2:]) < 0.8 * np.mean(losses[:2])
    moved = trained.answers - trained.answers_before
    for row, comment in enumerate(COMMENTS):
        for column, target in enumerate(comment.targets):
            assert (moved[row, column] > 0) == (target == 1.0)


def test_every_step_is_reported_and_the_last_epochs_mean_loss_returned(tiny: Classifier) -> None:
    reports: list[Progress] = []
    loss = fine_tune(tiny, COMMENTS, PLAN, reports.append)
    assert [(progress.step, progress.steps) for progress in reports] == [(step, 8) for step in range(1, 9)]
    assert loss == pytest.approx(np.mean([progress.loss for progress in reports[-2:]]))


def test_every_parameter_but_the_poolers_learns(trained: Trained) -> None:
    unchanged = {name for name, value in trained.after.items() if np.array_equal(value, trained.before[name])}
    assert unchanged == {"encoder/bert/pooler/dense/kernel", "encoder/bert/pooler/dense/bias"}
    assert all(np.isfinite(value).all() for value in trained.after.values())


def test_a_run_with_the_same_seed_gives_the_same_weights(trained: Trained, shared_data_dir: Path) -> None:
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
    with pytest.raises(ValueError, match="step 1 of 8: lower LEARNING_RATE"):
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
