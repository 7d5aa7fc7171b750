"""Live models over real version folders: which version answers, and when it is swapped."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from backend.live_model import REFUSED_SECONDS, LiveModels
from tests.conftest import REJECTED, load_without_tensorflow, publish
from toxicity.examples import BEGINNING
from toxicity.settings import Settings
from toxicity.versions import BASE_PROJECT, WEIGHTS_FILE, LoadedVersion, ProjectVersions


class CountingLoader:
    """Loads like load_without_tensorflow, remembers what it was asked for, and can be held up or made to fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.open = threading.Event()
        self.open.set()
        self.faults: dict[tuple[int, int], Exception] = {}

    def __call__(self, settings: Settings, versions: ProjectVersions, number: int) -> LoadedVersion:
        self.asked.append((versions.project, number))
        assert self.open.wait(30)
        fault = self.faults.pop((versions.project, number), None)
        if fault is not None:
            raise fault
        return load_without_tensorflow(settings, versions, number)


@pytest.fixture
def versions(settings: Settings) -> ProjectVersions:
    return ProjectVersions(settings.models_dir(), 1)


@pytest.fixture
def base(settings: Settings) -> ProjectVersions:
    return ProjectVersions(settings.models_dir(), BASE_PROJECT)


@pytest.fixture
def loader() -> CountingLoader:
    return CountingLoader()


@pytest.fixture
def live_models(settings: Settings, loader: CountingLoader) -> LiveModels:
    return LiveModels(settings, loader)


def test_the_projects_asked_for_last_are_kept_and_others_loaded_again(settings: Settings, loader: CountingLoader) -> None:
    live_models = LiveModels(replace(settings, live_models=2), loader)
    for project in (1, 2, 3):
        publish(ProjectVersions(settings.models_dir(), project), project)
    for project in (1, 2, 1, 7, 3):  # 7 has no version of its own
        live_models.of(project)
    kept = weakref.ref(live_models.of(1).classifier)
    live_models.swap_where_behind()
    loader.asked.clear()
    assert [answer(live_models.of(project)) for project in (3, 1, 7)] == [3, 1, 0]
    assert loader.asked == []
    held = live_models.of(1)
    assert [answer(live_models.of(project)) for project in (2, 3)] == [2, 3]
    assert loader.asked == [(2, 2), (3, 3)]
    assert (answer(held), live_models.of(1).name) == (1, "v1"), "a request keeps what it has"
    assert loader.asked == [(2, 2), (3, 3), (1, 1)]
    del held
    gc.collect()
    assert kept() is None


def test_a_version_published_for_a_project_that_was_let_go_answers_when_it_is_asked_for(
    settings: Settings, loader: CountingLoader
) -> None:
    live_models = LiveModels(replace(settings, live_models=1), loader)
    for project in (1, 2):
        publish(ProjectVersions(settings.models_dir(), project), 1)
        live_models.of(project)
    publish(ProjectVersions(settings.models_dir(), 1), 2)
    loader.asked.clear()
    live_models.swap_where_behind()
    assert loader.asked == []
    assert answer(live_models.of(1)) == 2


@pytest.fixture
def follow(settings: Settings, loader: CountingLoader) -> Iterator[LiveModels]:
    """Live models whose follower looks every hundredth of a second."""
    with closing(LiveModels(replace(settings, swap_poll=0.01), loader)) as followed:
        yield followed


def damage(versions: ProjectVersions, number: int) -> None:
    path = versions.folder(number) / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited 10 s in vain"
        time.sleep(0.005)


def wait_for_number(follow: LiveModels, number: int) -> None:
    wait_for(lambda: follow.of(1).number == number)


def answer(live: LoadedVersion) -> int:
    """The number of the version that computed the answer, as VersionEncodingPredictor encodes it."""
    return round(float(live.classifier.predict(["text"])[0, 0]) * 100)


@pytest.mark.parametrize("project", [None, 7])
def test_a_project_without_versions_is_answered_by_the_starter(live_models: LiveModels, project: int | None) -> None:
    assert (live_models.of(project).name, answer(live_models.of(project))) == ("v0", 0)
    assert live_models.version_in_service(project) == "v0"


def test_projects_without_versions_share_one_starter(live_models: LiveModels, loader: CountingLoader) -> None:
    first = live_models.of(None)
    assert live_models.of(7).classifier is live_models.of(8).classifier is first.classifier
    assert live_models.of(7) is live_models.of(7)
    assert loader.asked == [(0, 0)]


def test_projects_without_versions_are_answered_by_the_bases_live_version(
    live_models: LiveModels, base: ProjectVersions, loader: CountingLoader
) -> None:
    publish(base, 1)
    publish(base, 2, watermark="9-9")
    assert [live_models.version_in_service(project) for project in (None, 7)] == ["base-v2", "base-v2"]
    own, rests = live_models.of(None), live_models.of(7)
    assert (own.name, own.number, answer(own)) == ("base-v2", 2, 2)
    assert (rests.name, rests.number, rests.watermark, answer(rests)) == ("base-v2", 0, BEGINNING, 2)
    assert rests.classifier is own.classifier
    assert loader.asked == [(0, 2)]


def test_projects_without_versions_follow_the_base_and_others_do_not(
    live_models: LiveModels, base: ProjectVersions, versions: ProjectVersions, loader: CountingLoader
) -> None:
    publish(versions, 5)
    for project in (7, 1, 8):  # the base was never asked for itself
        live_models.of(project)
    for publishes, name in ((1, "base-v1"), (2, "base-v2")):
        publish(base, publishes)
        live_models.swap_where_behind()
        for follower in (7, 8, None):
            live = live_models.of(follower)
            assert (live.name, answer(live), live_models.version_in_service(follower)) == (name, publishes, name)
        assert live_models.of(7).watermark == BEGINNING
        assert live_models.of(1).name == "v5"
    base.make_current(0)
    live_models.swap_where_behind()
    assert [live_models.of(project).name for project in (7, 8, None, 1)] == ["v0", "v0", "v0", "v5"]
    taken = live_models.of(7)
    live_models.swap_where_behind()
    assert live_models.of(7) is taken
    assert loader.asked == [(0, 0), (1, 5), (0, 1), (0, 2), (0, 0)]


def test_a_project_that_rested_on_the_base_swaps_to_its_own_first_version_and_back(
    live_models: LiveModels, base: ProjectVersions, versions: ProjectVersions
) -> None:
    publish(base, 3)
    assert live_models.of(1).name == "base-v3"
    publish(versions, 1)
    live_models.swap_where_behind()
    assert (live_models.of(1).name, answer(live_models.of(1))) == ("v1", 1)
    versions.make_current(0)
    live_models.swap_where_behind()
    assert (live_models.of(1).name, answer(live_models.of(1))) == ("base-v3", 3)


def test_a_damaged_new_base_is_refused_for_every_project_that_rests_on_it(
    live_models: LiveModels, base: ProjectVersions, loader: CountingLoader
) -> None:
    publish(base, 1)
    live_models.of(7)
    publish(base, 2)
    damage(base, 2)
    for _ in range(3):
        live_models.swap_where_behind()
    assert [live_models.of(project).name for project in (None, 7)] == ["base-v1", "base-v1"]
    assert loader.asked.count((0, 2)) == 1


@pytest.mark.parametrize("pointer", [None, b"garbage"])
def test_a_rejected_version_never_answers_unless_it_is_put_into_service_by_hand(
    live_models: LiveModels, versions: ProjectVersions, pointer: bytes | None
) -> None:
    publish(versions, 1)
    publish(versions, 2, verdict=REJECTED)
    if pointer is None:
        (versions.root / "current").unlink()
    else:
        (versions.root / "current").write_bytes(pointer)
    assert live_models.of(1).name == "v1"
    live_models.swap_where_behind()
    assert live_models.of(1).name == "v1"
    versions.make_current(2)
    live_models.swap_where_behind()
    assert (live_models.of(1).name, answer(live_models.of(1))) == ("v2", 2)


def test_a_damaged_version_gives_way_to_an_accepted_one_before_it_never_to_a_rejected_one(
    live_models: LiveModels, versions: ProjectVersions
) -> None:
    publish(versions, 1)
    publish(versions, 2, verdict=REJECTED)
    publish(versions, 3)
    damage(versions, 3)
    assert live_models.of(1).name == "v1"


def test_the_current_version_answers_from_the_first_request_on(live_models: LiveModels, versions: ProjectVersions) -> None:
    publish(versions, 1)
    publish(versions, 2, watermark="5-0")
    assert live_models.version_in_service(1) == "v2"
    live = live_models.of(1)
    assert (live.name, live.watermark, answer(live)) == ("v2", "5-0", 2)


def test_a_published_version_is_swapped_in_and_a_request_keeps_the_one_it_took(
    live_models: LiveModels, versions: ProjectVersions
) -> None:
    taken = live_models.of(1)
    publish(versions, 1)
    assert live_models.of(1) is taken
    live_models.swap_where_behind()
    assert (live_models.of(1).name, live_models.version_in_service(1)) == ("v1", "v1")
    assert (taken.name, answer(taken), answer(live_models.of(1))) == ("v0", 0, 1)


def test_the_follower_swaps_by_itself(follow: LiveModels, versions: ProjectVersions) -> None:
    follow.start()
    assert follow.of(1).name == "v0"
    for number in (1, 2):
        publish(versions, number)
        wait_for_number(follow, number)
    versions.make_current(1)
    wait_for(lambda: follow.of(1).number == 1)


def test_the_follower_outlives_a_starter_that_fails_to_load_once(
    follow: LiveModels, loader: CountingLoader, versions: ProjectVersions
) -> None:
    loader.faults[0, 0] = OSError("disk")
    follow.start()
    wait_for(lambda: loader.faults == {})
    assert follow.of(1).name == "v0"
    publish(versions, 1)
    wait_for(lambda: follow.of(1).name == "v1")


def test_a_damaged_newest_version_at_the_start_gives_way_to_the_newest_good_one(
    live_models: LiveModels, versions: ProjectVersions
) -> None:
    for number in (1, 2, 3, 4):
        publish(versions, number)
    damage(versions, 4)
    (versions.folder(3) / "manifest.json").unlink()
    assert (live_models.of(1).name, answer(live_models.of(1))) == ("v2", 2)
    assert live_models.version_in_service(1) == "v2"


@pytest.mark.parametrize("pointer", [b"", b"garbage", b"9 9", b"\xff\xfe\x00"])
def test_a_damaged_pointer_gives_way_to_the_newest_good_version(
    live_models: LiveModels, versions: ProjectVersions, pointer: bytes
) -> None:
    publish(versions, 1)
    publish(versions, 2)
    (versions.root / "current").write_bytes(pointer)
    assert live_models.version_in_service(1)
    assert live_models.of(1).name == "v2"
    live_models.swap_where_behind()
    assert live_models.of(1).name == "v2"


def test_a_damaged_new_version_is_refused_and_not_tried_again_at_once(
    live_models: LiveModels, versions: ProjectVersions, loader: CountingLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(versions, 1)
    live_models.of(1)
    publish(versions, 2)
    damage(versions, 2)
    for _ in range(5):
        live_models.swap_where_behind()
    assert (live_models.of(1).name, answer(live_models.of(1))) == ("v1", 1)
    assert loader.asked.count((1, 2)) == 1
    damage(versions, 2)  # the same bit again: whole
    later = time.monotonic() + REFUSED_SECONDS + 1
    monkeypatch.setattr("backend.live_model.time.monotonic", lambda: later)
    live_models.swap_where_behind()
    assert live_models.of(1).name == "v2"


@pytest.mark.parametrize("fault", [RuntimeError("TensorFlow's errors are none of ours"), MemoryError(), KeyError("name")])
def test_a_version_that_fails_in_an_unforeseen_way_keeps_no_other_project_from_swapping(
    live_models: LiveModels, settings: Settings, versions: ProjectVersions, loader: CountingLoader, fault: Exception
) -> None:
    live_models.of(1)
    live_models.of(2)
    publish(versions, 1)
    publish(ProjectVersions(settings.models_dir(), 2), 1)
    loader.faults[1, 1] = fault
    live_models.swap_where_behind()
    assert (live_models.of(1).name, live_models.of(2).name) == ("v0", "v1")


def test_rolling_back_goes_to_an_older_version_and_to_the_starter(
    live_models: LiveModels, versions: ProjectVersions, loader: CountingLoader
) -> None:
    for number in (1, 2):
        publish(versions, number)
    assert live_models.of(1).name == "v2"
    versions.make_current(1)
    live_models.swap_where_behind()
    assert (live_models.of(1).name, answer(live_models.of(1))) == ("v1", 1)
    versions.make_current(0)
    live_models.swap_where_behind()
    assert (live_models.of(1).name, answer(live_models.of(1))) == ("v0", 0)
    assert live_models.version_in_service(1) == "v0"
    publish(versions, 3)
    live_models.swap_where_behind()
    assert live_models.of(1).name == "v3"


def test_the_version_in_service_is_told_at_once_while_a_version_is_loading(
    live_models: LiveModels, versions: ProjectVersions, loader: CountingLoader
) -> None:
    publish(versions, 1)
    loader.open.clear()
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(live_models.of, 1)
        wait_for(lambda: loader.asked == [(1, 1)])
        started = time.monotonic()
        assert [live_models.version_in_service(project) for project in (1, 2, None)] == ["v1", "v0", "v0"]
        assert time.monotonic() - started < 0.5
        assert not loading.done()
        loader.open.set()
        assert loading.result(10).name == "v1"


def test_the_old_version_answers_while_the_new_one_is_loading(
    live_models: LiveModels, versions: ProjectVersions, loader: CountingLoader
) -> None:
    live_models.of(1)
    publish(versions, 1)
    loader.open.clear()
    with ThreadPoolExecutor(1) as threads:
        swapping = threads.submit(live_models.swap_where_behind)
        wait_for(lambda: (1, 1) in loader.asked)
        assert (answer(live_models.of(1)), live_models.version_in_service(1)) == (0, "v0")
        assert not swapping.done()
        loader.open.set()
        swapping.result(10)
    assert answer(live_models.of(1)) == 1


def test_first_requests_at_the_same_time_load_once(
    live_models: LiveModels, versions: ProjectVersions, loader: CountingLoader
) -> None:
    publish(versions, 1)
    barrier = threading.Barrier(16)

    def ask(_: int) -> LoadedVersion:
        barrier.wait()
        return live_models.of(1)

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(16)))
    assert {id(live) for live in answers} == {id(live_models.of(1))}
    assert loader.asked == [(1, 1)]


def test_under_load_every_answer_comes_from_the_version_that_it_names(follow: LiveModels, versions: ProjectVersions) -> None:
    follow.start()
    follow.of(1)
    done = threading.Event()

    def hammer(_: int) -> list[tuple[int, int]]:
        seen = []
        while not done.is_set():
            live = follow.of(1)
            seen.append((live.number, answer(live)))
            time.sleep(0.0005)  # lets the publishing thread have its turn
        return seen

    with ThreadPoolExecutor(8) as threads:
        hammering = [threads.submit(hammer, thread) for thread in range(8)]
        for number in range(1, 31):
            publish(versions, number)
            wait_for_number(follow, number)
        done.set()
        answers = [thread.result(10) for thread in hammering]
    for seen in answers:
        assert all(named == computed for named, computed in seen)
        assert [named for named, _ in seen] == sorted(named for named, _ in seen)
    assert len({named for seen in answers for named, _ in seen}) > 10  # the hammering did meet the swaps


@pytest.mark.parametrize("project", [BASE_PROJECT, 1])
def test_after_a_swap_the_old_version_is_gone_from_memory(settings: Settings, project: int) -> None:
    versions = ProjectVersions(settings.models_dir(), project)

    def load_a_cycle(settings: Settings, versions: ProjectVersions, number: int) -> LoadedVersion:
        loaded = load_without_tensorflow(settings, versions, number)
        vars(loaded.classifier)["itself"] = loaded.classifier  # as Keras models refer to themselves
        return loaded

    publish(versions, 1)
    live_models = LiveModels(settings, load_a_cycle)
    gc.disable()
    try:
        old = weakref.ref(live_models.of(project).classifier)
        resting = live_models.of(7).name
        publish(versions, 2)
        live_models.swap_where_behind()
        assert live_models.of(project).number == 2
        assert live_models.of(7).name == ("base-v2" if project == BASE_PROJECT else resting)
        assert old() is None
    finally:
        gc.enable()
