"""A comment that is to be forgotten stands nowhere afterwards: not in Redis, nor in the files on the disk."""

import time
from pathlib import Path

import pytest

from tests.conftest import OwnRedis
from toxicity.__main__ import main
from toxicity.examples import BEGINNING, ExampleStore
from toxicity.forgetting import forget_task
from toxicity.hold_out import text_hash
from toxicity.label_studio import Annotation, Changes
from toxicity.redis_connection import redis_url

CANARY = "canary-51c9 and nothing else"


def annotation(task: int, text: str = CANARY, updated_at: str = "2026-01-01T00:00:00.000000Z") -> Annotation:
    return Annotation(task, task, updated_at, text, (1.0,) * 6)


def on_disk(folder: Path) -> bool:
    return any(CANARY.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def in_redis(own: OwnRedis) -> bool:
    dumps = [own.client.dump(key) for key in own.client.scan_iter()]
    return any(CANARY.encode()[:10] in (dump or b"") for dump in dumps)


@pytest.fixture
def store(own_redis: OwnRedis) -> ExampleStore:
    store = ExampleStore(own_redis.client)
    store.apply(Changes(1, annotations=(annotation(5), annotation(6, "another comment"))))
    store.assign(1, {5: True, 6: False}, {text_hash(CANARY): True, text_hash("another comment"): False})
    return store


def test_it_stands_nowhere_afterwards_and_does_not_come_back(own_redis: OwnRedis, store: ExampleStore, tmp_path: Path) -> None:
    assert on_disk(own_redis.data_dir)
    assert in_redis(own_redis)
    done = forget_task(own_redis.client, tmp_path / "spool", 1, 5)
    assert done[0] == "its comment is removed from Redis"
    for _ in range(200):
        if not on_disk(own_redis.data_dir):
            break
        time.sleep(0.05)
    assert not on_disk(own_redis.data_dir)
    assert not in_redis(own_redis)
    assert store.text_sides(1) == {text_hash("another comment"): False}
    store.apply(Changes(1, annotations=(annotation(5, updated_at="2026-02-01T00:00:00.000000Z"),)))
    assert set(store.snapshot(1, BEGINNING).targets) == {6}
    assert not in_redis(own_redis)


def test_a_text_that_another_task_has_keeps_its_side(own_redis: OwnRedis, store: ExampleStore, tmp_path: Path) -> None:
    store.apply(Changes(1, annotations=(annotation(7),)))
    forget_task(own_redis.client, tmp_path / "spool", 1, 5)
    assert text_hash(CANARY) in store.text_sides(1)
    assert set(store.snapshot(1, BEGINNING).targets) == {6, 7}


def test_what_could_not_be_recorded_is_removed_too(own_redis: OwnRedis, store: ExampleStore, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    contents = {
        "1.unusable": f'{{"project": 1, "annotations": [{{"task_id": 5, "text": "{CANARY}"}}]}}',
        "2.unusable": '{"project": 1, "annotations": [{"task_id": 6}]}',
        "3.unusable": f'{{"annotations: [{CANARY}',
    }
    for name, content in contents.items():
        (spool / name).write_text(content)
    forget_task(own_redis.client, spool, 1, 5)
    assert [file.name for file in spool.iterdir()] == ["2.unusable"]


def test_the_command_says_what_it_did(
    own_redis: OwnRedis, store: ExampleStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_DIR", str(own_redis.data_dir))
    monkeypatch.setenv("REDIS_URL", redis_url(own_redis.settings))
    assert main(["forget", "--project", "1", "--task", "5"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("task 5 of project 1: its comment is removed from Redis; ")
    assert "Label Studio keeps its own copy" in told
    assert main(["forget", "--project", "1", "--task", "99"]) == 0
    assert "Redis had no comment of it" in capsys.readouterr().out


def test_without_redis_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert main(["forget", "--project", "1", "--task", "5"]) == 1
    assert "Redis does not answer (ConnectionError): nothing is forgotten yet" in capsys.readouterr().err
