"""Versions on a real disk: publish, reject, load, damage, crashes, rivals, readers, rollback, prune."""

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import ACCEPTED, CARDS, REJECTED, manifest_of, publish
from toxicity.calibration import Calibration
from toxicity.manifest import Verdict
from toxicity.versions import BASE_PROJECT, OvertakenError, ProjectVersions, VersionError, projects_with_versions

ROOT = Path(__file__).parents[1]
Json = dict[str, Any]
FILES = ["manifest.json", "model_card.json", "model_card.md", "weights.safetensors"]


@pytest.fixture
def versions(tmp_path: Path) -> ProjectVersions:
    return ProjectVersions(tmp_path / "models", 7)


@pytest.fixture
def base(tmp_path: Path) -> ProjectVersions:
    return ProjectVersions(tmp_path / "models", BASE_PROJECT)


def publish_all(versions: ProjectVersions, last: int) -> None:
    for number in range(1, last + 1):
        publish(versions, number)


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def pointer(versions: ProjectVersions) -> Path:
    return versions.root / "current"


def test_a_project_without_versions_serves_the_starter_and_has_no_folder(versions: ProjectVersions) -> None:
    assert (versions.numbers(), versions.current(), versions.next_number()) == ([], 0, 1)
    assert not versions.root.exists()


def test_what_is_published_is_loaded_back_and_in_service(versions: ProjectVersions) -> None:
    published = publish(versions, 1, watermark="17-3")
    manifest, weights = versions.load(1)
    assert manifest == published
    assert manifest == dataclasses.replace(manifest_of(1, 0, "17-3"), files=published.files)
    assert sorted(published.files) == ["model_card.json", "model_card.md", "weights.safetensors"]
    assert weights.keys() == {"weight"}
    np.testing.assert_array_equal(weights["weight"], np.full(3, 1, np.float32), strict=True)
    assert (versions.numbers(), versions.current(), versions.next_number()) == ([1], 1, 2)


def test_everything_in_a_manifest_is_read_back(versions: ProjectVersions) -> None:
    manifest = dataclasses.replace(
        manifest_of(1),
        thresholds=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
        calibration=Calibration((0.5, 1.0, 1.5, 2.0, 2.5, 3.0), (-1.0, 0.0, 1.0, 2.0, 3.0, 4.0)),
        golden_outputs=((0.25,) * 6, (0.75,) * 6),
        verdict=Verdict(True, ("one reason", "another"), "reference", 120),
    )
    published = versions.publish(manifest, {"weight": np.zeros(3, np.float32)}, CARDS)
    assert versions.manifest(1) == published == dataclasses.replace(manifest, files=published.files)


def test_a_published_version_is_four_files_and_leaves_nothing_else(versions: ProjectVersions) -> None:
    publish(versions, 1)
    assert entries(versions.folder(1)) == FILES
    assert {name: (versions.folder(1) / name).read_text() for name in CARDS} == CARDS
    assert entries(versions.root) == ["current", "lock", "versions"]
    assert entries(versions.root / "versions") == ["1"]


def test_the_size_of_a_version_is_that_of_its_files(versions: ProjectVersions) -> None:
    publish(versions, 1)
    assert versions.size(1) == sum(len((versions.folder(1) / name).read_bytes()) for name in FILES)


@pytest.mark.parametrize("name", ["weights.safetensors", "model_card.md", "model_card.json"])
@pytest.mark.parametrize("position", [0, -1])
def test_a_file_with_one_damaged_byte_is_refused(versions: ProjectVersions, name: str, position: int) -> None:
    publish(versions, 1)
    path = versions.folder(1) / name
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(VersionError, match=rf"{name} has sha256 .* the file is damaged"):
        versions.load(1)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_refused(versions: ProjectVersions, name: str) -> None:
    publish(versions, 1)
    path = versions.folder(1) / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(VersionError, match=name):
        versions.load(1)
    path.unlink()
    with pytest.raises(VersionError, match=f"{name} cannot be read"):
        versions.load(1)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"format": 3},
        {"labels": 5},
        {"golden_outputs": [1]},
        {"files": ["x"]},
        {"surplus": 1},
        {"calibration": {"slopes": [1] * 6}},
        {"calibration": {"slopes": [-1] * 6, "offsets": [0] * 6}},
        {"verdict": True},
        {"verdict": {"accepted": True, "reasons": []}},
    ],
    ids=str,
)
def test_a_manifest_of_another_format_is_refused(versions: ProjectVersions, change: Json) -> None:
    publish(versions, 1)
    path = versions.folder(1) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(VersionError):
        versions.load(1)


def test_a_version_pruned_while_it_is_loaded_is_refused(versions: ProjectVersions, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_all(versions, 3)

    def load_after_pruning(path: Path) -> Json:
        versions.prune(2)
        return load_file(path)

    monkeypatch.setattr("toxicity.versions.load_file", load_after_pruning)
    with pytest.raises(VersionError):
        versions.load(1)


def test_a_taken_number_is_refused_and_the_first_version_stays(versions: ProjectVersions) -> None:
    publish_all(versions, 2)
    before = pointer(versions).read_text()
    with pytest.raises(VersionError, match="Version 1 of project 7 was published by another run"):
        versions.publish(manifest_of(1), {"weight": np.full(3, 99, np.float32)}, {"model_card.md": "# another"})
    assert versions.load(1)[1]["weight"].tolist() == [1, 1, 1]
    assert pointer(versions).read_text() == before
    assert entries(versions.root / "versions") == ["1", "2"]


def test_a_version_whose_run_died_before_the_pointer_moved_is_in_service(versions: ProjectVersions) -> None:
    publish(versions, 1)
    before = pointer(versions).read_bytes()
    publish(versions, 2)
    pointer(versions).write_bytes(before)
    assert (versions.current(), versions.next_number()) == (2, 3)
    pointer(versions).unlink()
    assert versions.current() == 2


def test_a_version_whose_run_died_after_a_rollback_is_in_service(versions: ProjectVersions) -> None:
    publish_all(versions, 3)
    versions.make_current(1)
    before = pointer(versions).read_bytes()
    publish(versions, 4)
    pointer(versions).write_bytes(before)
    assert versions.current() == 4


def test_a_rejected_version_is_kept_and_listed_and_does_not_come_into_service(versions: ProjectVersions) -> None:
    publish(versions, 1)
    before = pointer(versions).read_bytes()
    rejected = publish(versions, 2, watermark="5-0", verdict=REJECTED)
    assert (versions.numbers(), versions.accepted(), versions.current(), versions.next_number()) == ([1, 2], [1], 1, 3)
    assert pointer(versions).read_bytes() == before
    manifest, weights = versions.load(2)
    assert (manifest, manifest.verdict, manifest.watermark) == (rejected, REJECTED, "5-0")
    assert weights["weight"].tolist() == [2, 2, 2]
    assert entries(versions.folder(2)) == FILES
    publish(versions, 3)
    assert (versions.accepted(), versions.current()) == ([1, 3], 3)


def test_a_rejected_version_comes_into_service_by_no_lack_of_a_pointer(versions: ProjectVersions) -> None:
    publish(versions, 1, verdict=REJECTED)
    assert not pointer(versions).exists()
    assert (versions.numbers(), versions.current()) == ([1], 0)
    publish(versions, 2)
    before = pointer(versions).read_bytes()
    publish(versions, 3)
    publish(versions, 4, verdict=REJECTED)
    pointer(versions).write_bytes(before)
    assert versions.current() == 3
    pointer(versions).unlink()
    assert versions.current() == 3


def test_a_rejected_version_can_be_put_into_service_by_hand_and_stays_there(versions: ProjectVersions) -> None:
    publish(versions, 1)
    publish(versions, 2, verdict=REJECTED)
    versions.make_current(2)
    publish(versions, 3, verdict=REJECTED)
    assert versions.current() == 2
    assert (versions.prune(1), versions.current()) == ([], 2)
    publish(versions, 4)
    assert versions.current() == 4


def test_a_version_that_nobody_saw_and_whose_manifest_is_damaged_does_not_come_into_service(versions: ProjectVersions) -> None:
    publish(versions, 1)
    before = pointer(versions).read_bytes()
    publish(versions, 2)
    pointer(versions).write_bytes(before)
    (versions.folder(2) / "manifest.json").write_text("{")
    assert (versions.numbers(), versions.accepted(), versions.current()) == ([1, 2], [1], 1)


def test_a_projects_beginning_bears_the_name_of_the_base_in_service(versions: ProjectVersions, base: ProjectVersions) -> None:
    assert (base.name(0), versions.name(0), versions.name(3)) == ("v0", "v0", "v3")
    assert publish(base, 1).name == "base-v1"
    assert publish(versions, 1).name == "v1"
    assert (base.name(0), base.name(1), versions.name(0), versions.name(1)) == ("v0", "base-v1", "base-v1", "v1")
    publish(base, 2, verdict=REJECTED)
    assert (base.name(2), versions.name(0)) == ("base-v2", "base-v1")
    base.make_current(2)
    assert versions.name(0) == "base-v2"
    pointer(base).write_text("garbage")
    assert versions.name(1) == "v1"
    with pytest.raises(VersionError, match="not two numbers"):
        versions.name(0)


def test_a_run_that_publishes_late_never_takes_a_newer_version_out_of_service(versions: ProjectVersions) -> None:
    publish(versions, 2)
    publish(versions, 1)
    assert versions.current() == 2


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_a_rollback_sticks_though_newer_versions_exist_and_the_next_publish_moves_on(
    versions: ProjectVersions, chosen: int
) -> None:
    publish_all(versions, 3)
    versions.make_current(chosen)
    assert ProjectVersions(versions.root.parent, 7).current() == chosen
    assert (versions.numbers(), versions.next_number()) == ([1, 2, 3], 4)
    publish(versions, versions.next_number())
    assert versions.current() == 4
    assert entries(versions.root) == ["current", "lock", "versions"]


def test_a_rollback_to_a_version_that_does_not_exist_changes_nothing(versions: ProjectVersions) -> None:
    publish_all(versions, 2)
    with pytest.raises(VersionError, match=r"There is no version v5; there are v1, v2, and v0, where they started from\."):
        versions.make_current(5)
    assert versions.current() == 2


def test_prune_keeps_the_newest_and_the_one_in_service(versions: ProjectVersions) -> None:
    publish_all(versions, 6)
    versions.make_current(2)
    assert versions.prune(2) == [1, 3, 4]
    assert entries(versions.root / "versions") == ["2", "5", "6"]
    assert versions.current() == 2
    assert versions.load(2)[1]["weight"].tolist() == [2, 2, 2]
    assert versions.prune(2) == versions.prune(5) == []


def test_prune_keeps_the_best_version_of_the_live_ones_line(versions: ProjectVersions) -> None:
    for number in range(1, 7):
        publish(versions, number, best=min(number, 2))
    assert (versions.best(1), versions.best(6), versions.best(0)) == (1, 2, 0)
    assert versions.prune(2) == [1, 3, 4]
    assert versions.numbers() == [2, 5, 6]
    versions.make_current(0)
    assert versions.prune(2) == [2]  # of the line that begins anew nothing is known to be best


def test_the_best_version_is_unknown_where_a_manifest_cannot_be_read(versions: ProjectVersions) -> None:
    publish(versions, 1, best=1)
    (versions.folder(1) / "manifest.json").unlink()
    assert versions.best(1) == 0


def test_prune_keeps_rejected_versions_as_long_as_accepted_ones_of_their_time(versions: ProjectVersions) -> None:
    for number in range(1, 7):
        publish(versions, number, verdict=REJECTED if number % 2 == 0 else ACCEPTED)
    assert versions.prune(2) == [1, 2]
    assert (versions.numbers(), versions.accepted(), versions.current()) == ([3, 4, 5, 6], [3, 5], 5)


def test_prune_never_gives_up_accepted_versions_for_rejected_ones_nor_the_newest_number(versions: ProjectVersions) -> None:
    publish(versions, 1)
    for number in range(2, 8):
        publish(versions, number, verdict=REJECTED)
    assert versions.prune(2) == [2, 3, 4, 5]
    assert (versions.numbers(), versions.current(), versions.next_number()) == ([1, 6, 7], 1, 8)


def test_a_number_is_never_used_again_after_rollback_and_prune(versions: ProjectVersions) -> None:
    publish_all(versions, 4)
    versions.make_current(1)
    assert versions.prune(2) == [2]
    assert versions.next_number() == 5


def test_unfinished_and_foreign_folders_are_never_listed(versions: ProjectVersions) -> None:
    publish(versions, 1)
    for name in (".9.0123456789abcdef", ".2", "3.tmp", "latest", "-4", "٥"):
        (versions.root / "versions" / name).mkdir()
    assert (versions.numbers(), versions.current(), versions.next_number()) == ([1], 1, 2)


@pytest.mark.parametrize("content", [b"", b"three\n", b"3\n", b"3 -1\n", b"1 2 3\n", "٣ ٣".encode(), b"\x00\xff\xfe"])
def test_a_pointer_that_is_not_two_numbers_is_refused(versions: ProjectVersions, content: bytes) -> None:
    publish(versions, 1)
    pointer(versions).write_bytes(content)
    with pytest.raises(VersionError, match="not two numbers: remove it to serve the newest version"):
        versions.current()


def test_projects_are_listed_by_number_and_other_folders_are_not(tmp_path: Path) -> None:
    assert projects_with_versions(tmp_path / "none") == []
    for name in ("10", "9", ".9", "embedded-encoder", "1a"):
        (tmp_path / name).mkdir()
    assert projects_with_versions(tmp_path) == [9, 10]


RIVAL = """
import sys, time
from pathlib import Path
from tests.conftest import publish
from toxicity.versions import ProjectVersions, VersionError
models, go = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
won = []
for number in range(1, 21):
    try:
        publish(ProjectVersions(models, 7), number, watermark=sys.argv[3])
        won.append(number)
    except VersionError:
        pass
print(won)
"""


def test_of_processes_that_publish_the_same_number_exactly_one_has_it(versions: ProjectVersions, tmp_path: Path) -> None:
    go = tmp_path / "go"
    commands = [[sys.executable, "-c", RIVAL, str(versions.root.parent), str(go), f"{rival}-0"] for rival in range(3)]
    rivals = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for command in commands]
    for rival in rivals:
        assert rival.stdout is not None
        assert rival.stdout.readline() == "ready\n"
    go.touch()
    won = [json.loads(rival.communicate(timeout=60)[0]) for rival in rivals]
    assert sorted(number for numbers in won for number in numbers) == list(range(1, 21))
    assert all(versions.load(number)[0].watermark == f"{rival}-0" for rival, numbers in enumerate(won) for number in numbers)
    assert entries(versions.root / "versions") == sorted(map(str, range(1, 21)))
    assert versions.current() == 20


def test_readers_never_see_an_incomplete_version_during_200_publishes(versions: ProjectVersions) -> None:
    seen = [0]
    publisher = threading.Thread(target=publish_all, args=(versions, 200))
    publisher.start()
    while publisher.is_alive():
        number = versions.current()
        assert number >= seen[-1]
        if number:
            manifest, weights = versions.load(number)
            assert (manifest.number, weights["weight"].tolist()) == (number, [number] * 3)
            seen.append(number)
    publisher.join()
    assert versions.numbers() == list(range(1, 201))
    assert len(set(seen)) > 5


def test_what_was_made_to_replace_another_version_than_the_live_one_is_not_published(versions: ProjectVersions) -> None:
    publish_all(versions, 2)
    with pytest.raises(OvertakenError, match=r"Project 7 is served by v2 and no longer by v1; this run is dropped\."):
        versions.publish(manifest_of(3, parent=1), {"weight": np.ones(3, np.float32)}, CARDS, replacing="v1")
    assert (versions.numbers(), versions.current()) == ([1, 2], 2)
    assert entries(versions.folder(1).parent) == ["1", "2"]
    versions.publish(manifest_of(3, parent=2), {"weight": np.ones(3, np.float32)}, CARDS, replacing="v2")
    assert versions.current() == 3
