"""Predictions of many requests in shared batches: to each its own answer, and what is known is not computed again."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

import backend.batching
from backend.batching import SMALL, Batching, OutOfTimeError
from tests.conftest import PredictorStandIn
from toxicity.calibration import Calibration
from toxicity.labels import DEFAULT_THRESHOLDS, LABELS
from toxicity.versions import LoadedVersion


class Network(PredictorStandIn):
    """Answers with a text's length in thousandths, plus its own number; notes its batches, and may be held up."""

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.batches: list[list[str]] = []
        self.entered, self.leave = threading.Event(), threading.Event()
        self.leave.set()

    def hold(self) -> None:
        self.entered.clear()
        self.leave.clear()

    def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]:
        self.batches.append(list(comments))
        self.entered.set()
        assert self.leave.wait(30)
        return np.repeat([[len(comment) / 1000 + self.number] for comment in comments], len(LABELS), axis=1).astype(np.float32)


def version(network: PredictorStandIn, calibration: Calibration | None = None) -> LoadedVersion:
    return LoadedVersion("v1", 1, DEFAULT_THRESHOLDS, "0-0", network, calibration or Calibration())


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def batching() -> Batching:
    return Batching(1000, computing_threads=1)  # so that what waits is known


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as pool:
        yield pool


def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("threads", [1, 2])
def test_answers_are_in_the_comments_order_however_many_there_are(network: Network, threads: int) -> None:
    batching = Batching(1000, threads)
    for count in (0, 1, SMALL - 1, SMALL, 100, 3000):
        comments = ["x" * (1 + 37 * number % 401) + str(number) for number in range(count)]
        found = batching.predict(version(network), comments)
        assert found.shape == (count, 6)
        np.testing.assert_allclose(found[:, 0], [len(comment) / 1000 for comment in comments], rtol=1e-6)


def test_many_requests_at_once_get_their_own_answers_from_two_threads(network: Network, pool: ThreadPoolExecutor) -> None:
    batching, live = Batching(1), version(network)  # hardly anything is remembered
    requests = [["x" * (1 + (37 * number + each) % 401) for each in range(number % 30)] for number in range(200)]
    answers = [pool.submit(batching.predict, live, request) for request in requests]
    for request, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer.result(60)[:, 0], [len(comment) / 1000 for comment in request], rtol=1e-6)


def test_two_batches_are_computed_at_a_time(network: Network, pool: ThreadPoolExecutor) -> None:
    batching, live = Batching(1000), version(network)
    network.hold()
    small = [pool.submit(batching.predict, live, ["first"])]
    assert network.entered.wait(30)
    small.append(pool.submit(batching.predict, live, ["second"]))
    until(lambda: network.batches == [["first"], ["second"]])
    network.leave.set()
    assert [each.result()[0, 0] for each in small] == pytest.approx([0.005, 0.006])

    network.batches.clear()
    network.hold()
    large = pool.submit(batching.predict, live, ["word " * length for length in range(1, 101)])
    until(lambda: len(network.batches) == 2)
    network.leave.set()
    np.testing.assert_allclose(large.result()[:, 0], [5 * length / 1000 for length in range(1, 101)], rtol=1e-6)


def test_what_waits_is_computed_together_and_nobody_waits_for_more(
    batching: Batching, network: Network, pool: ThreadPoolExecutor
) -> None:
    network.hold()
    first = pool.submit(batching.predict, version(network), ["alone"])
    assert network.entered.wait(30)  # at once, though it is one
    others = [pool.submit(batching.predict, version(network), [f"comment {number:2}"]) for number in range(16)]
    until(lambda: len(batching._jobs) == 16)
    network.leave.set()
    assert [len(each.result(30)) for each in (first, *others)] == [1] * 17
    assert [len(batch) for batch in network.batches] == [1, 16]


def test_one_batch_has_one_network_and_an_answer_one_version(batching: Batching, pool: ThreadPoolExecutor) -> None:
    old, new = Network(0), Network(1)
    old.hold()
    held_up = pool.submit(batching.predict, version(old), ["first"])
    assert old.entered.wait(30)
    waiting = [pool.submit(batching.predict, version(old if number % 2 else new), [f"{number}", "x"]) for number in range(10)]
    until(lambda: len(batching._jobs) == 10)
    old.leave.set()
    for number, each in enumerate(waiting):
        assert {int(value) for value in each.result(30).ravel()} == {0 if number % 2 else 1}
    held_up.result(30)


def test_a_comment_is_not_computed_twice_by_one_version(batching: Batching, network: Network) -> None:
    comments = ["bread", "rolls", "bread", "half \ud83d", "", "half \ud83d"]
    first = batching.predict(version(network), comments)
    assert sorted(network.batches[0]) == ["", "bread", "half \ud83d", "rolls"]
    np.testing.assert_array_equal(batching.predict(version(network), comments[::-1]), first[::-1])
    batching.predict(version(network), ["rolls", "new"])
    assert network.batches[1:] == [["new"]]


def test_another_version_computes_anew_and_calibration_is_not_cached(batching: Batching, network: Network) -> None:
    another = Network(1)
    batching.predict(version(network), ["bread"])
    assert batching.predict(version(another), ["bread"])[0, 0] > 1
    plain = batching.predict(version(network), ["bread"])
    raised = batching.predict(version(network, Calibration(offsets=(2.0,) * 6)), ["bread"])
    assert (raised > plain).all()
    assert (len(network.batches), len(another.batches)) == (1, 1)


def test_the_cache_keeps_so_many_and_forgets_the_longest_unused(network: Network) -> None:
    batching = Batching(3)
    for comment in ("a", "b", "c", "a", "d"):
        batching.predict(version(network), [comment])
    network.batches.clear()
    for comment in ("a", "c", "d", "b"):
        batching.predict(version(network), [comment])
    assert network.batches == [["b"]]
    assert len(batching.predict(version(network), [str(number) for number in range(50)])) == 50


def test_large_requests_take_turns_with_each_other_and_with_small_ones(
    batching: Batching, network: Network, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    network.hold()
    first = pool.submit(batching.predict, version(network), ["first"])
    assert network.entered.wait(30)
    large = [
        pool.submit(batching.predict, version(network), [f"{name}{'.' * 80}{number}" for number in range(100)]) for name in "ab"
    ]
    until(lambda: len(batching._jobs) == 2)
    small = [pool.submit(batching.predict, version(network), [f"s{number}"]) for number in range(3)]
    until(lambda: len(batching._jobs) == 5)
    network.leave.set()
    for each in (first, *large, *small):
        each.result(30)
    order = ["".join(sorted({comment[0] for comment in batch})) for batch in network.batches[1:]]
    assert order[1] == "s"  # after one batch of a large one
    assert [name for name in order if name != "s"][:4] == ["a", "b", "a", "b"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [1, 50, 3000])
def test_a_fault_reaches_whoever_asked_and_the_next_request_is_answered(network: Network, count: int, threads: int) -> None:
    batching = Batching(1000, threads)

    class Failing(PredictorStandIn):
        def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]:
            raise RuntimeError("no memory")

    comments = [str(number) for number in range(count)]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no memory"):
            batching.predict(version(Failing()), comments)
    assert len(batching.predict(version(network), comments)) == count


@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_that_nobody_uses_any_more_is_let_go(threads: int) -> None:
    batching, network = Batching(1000, threads), Network()
    gone = weakref.ref(network)
    batching.predict(version(network), ["bread"] * 20 + ["rolls"])
    del network
    until(lambda: gc.collect() >= 0 and gone() is None)


def test_a_request_is_tokenized_a_few_portions_ahead_at_most(
    batching: Batching, network: Network, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.batching, "FIRST_PORTION", 10)
    monkeypatch.setattr(backend.batching, "COMMENTS_PER_PASS", 10)
    encoded: list[str] = []
    original = network.encode

    def encode(comment: str) -> Sequence[int]:
        encoded.append(comment)
        return original(comment)

    monkeypatch.setattr(network, "encode", encode)
    network.hold()
    comments = [f"comment {number}" for number in range(1000)]
    answer = pool.submit(batching.predict, version(network), comments)
    assert network.entered.wait(30)
    until(lambda: len(encoded) == 30)
    threading.Event().wait(0.1)
    assert len(encoded) == 30
    network.leave.set()
    assert len(answer.result(30)) == len(encoded) == 1000


def test_a_request_that_takes_too_long_goes_on_where_it_ended(
    batching: Batching, network: Network, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.batching, "LONGEST_SECONDS", 0.5)
    monkeypatch.setattr(backend.batching, "FIRST_PORTION", 10)
    monkeypatch.setattr(backend.batching, "COMMENTS_PER_PASS", 10)
    comments = [f"{number}{'x' * 600}" for number in range(100)]
    original = network.predict

    def predict(given: Sequence[str]) -> npt.NDArray[np.float32]:
        if len(network.batches) == 2:
            network.hold()
        return original(given)

    monkeypatch.setattr(network, "predict", predict)
    with pytest.raises(OutOfTimeError, match="100 comments took longer"):
        batching.predict(version(network), comments)
    network.leave.set()
    until(lambda: len(network.batches) == 3)
    monkeypatch.setattr(backend.batching, "LONGEST_SECONDS", 30)
    computed = [comment for batch in network.batches[:2] for comment in batch]
    assert len(computed) < 10  # not even one portion
    assert len(batching.predict(version(network), comments)) == 100
    again = [comment for batch in network.batches[3:] for comment in batch]
    assert not set(again) & set(computed)


def test_of_one_request_the_oldest_portion_is_computed_first(
    batching: Batching, network: Network, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.batching, "FIRST_PORTION", 10)
    monkeypatch.setattr(backend.batching, "COMMENTS_PER_PASS", 10)
    network.hold()
    first = pool.submit(batching.predict, version(network), ["first"])
    assert network.entered.wait(30)
    large = []
    for name, jobs in (("a", 3), ("b", 6)):
        large.append(pool.submit(batching.predict, version(network), [f"{name}{number}{'x' * 600}" for number in range(40)]))
        until(lambda jobs=jobs: len(batching._jobs) == jobs)  # type: ignore[misc] # mypy cannot infer a lambda's default
    network.leave.set()
    for each in (first, *large):
        each.result(30)
    order = [int(comment[1:3].rstrip("x")) // 10 for batch in network.batches[1:] for comment in batch if comment[0] == "a"]
    assert order == sorted(order)
    assert [batch[0][0] for batch in network.batches[1:7]] == ["a", "b"] * 3


def test_what_fails_for_one_request_is_not_the_others_fault(
    batching: Batching, network: Network, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = network.predict

    def predict(given: Sequence[str]) -> npt.NDArray[np.float32]:
        answers = original(given)
        if "bad" in given:
            raise RuntimeError("out of range")
        return answers[:1] if "short" in given else answers

    monkeypatch.setattr(network, "predict", predict)
    network.hold()
    first = pool.submit(batching.predict, version(network), ["first"])
    assert network.entered.wait(30)
    asked = {text: pool.submit(batching.predict, version(network), [text, text * 2]) for text in ("good", "bad", "short", "fine")}
    until(lambda: len(batching._jobs) == 4)
    network.leave.set()
    assert len(first.result(30)) == 1
    assert asked["good"].result(30)[1, 0] == pytest.approx(0.008)
    assert asked["fine"].result(30)[0, 0] == pytest.approx(0.004)
    with pytest.raises(RuntimeError, match="out of range"):
        asked["bad"].result(30)
    with pytest.raises(ValueError, match=r"answered with shape \(1, 6\), expected \(2, 6\)"):
        asked["short"].result(30)
