"""ToxicityModel as label-studio-ml's own server and callers use it: init_app, predict, fit."""

import dataclasses
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from flask.testing import FlaskClient
from label_studio_ml.api import _manager, init_app
from label_studio_ml.model import LabelStudioMLBase

from backend.batching import Batching
from backend.live_model import LiveModels
from backend.model import Services, ToxicityModel, services_of_this_process
from backend.recording import Recording
from tests.conftest import load_without_tensorflow, publish
from toxicity.comments import LabelledComment
from toxicity.examples import BEGINNING, ExampleStore
from toxicity.labelling_config import DEFAULT_CONFIG, LabelStudioError
from toxicity.labels import LABELS
from toxicity.settings import Settings
from toxicity.training_queue import TrainingQueue
from toxicity.versions import ProjectVersions

CLEAN_PREDICTION = {"result": [], "score": 1.0, "model_version": "v0", "probabilities": dict.fromkeys(LABELS, 0.0)}
TOXIC = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
TICKED = [{"from_name": "toxicity", "to_name": "text", "type": "choices", "value": {"choices": ["toxic"]}}]
EVENT: dict[str, Any] = {
    "annotation": {"id": 1, "task": 10, "result": TICKED, "updated_at": "2026-01-01T10:00:00Z"},
    "task": {"id": 10, "data": {"text": "you idiot"}},
    "project": {"id": 1, "label_config": DEFAULT_CONFIG},
}


@pytest.fixture
def store(connection: redis.Redis) -> ExampleStore:
    return ExampleStore(connection)


@pytest.fixture
def services(connection: redis.Redis, redis_settings: Settings) -> Services:
    return Services(LiveModels(redis_settings, load_without_tensorflow), Batching(100), Recording(redis_settings))


@pytest.fixture
def their_client(services: Services, tmp_path: Path) -> Iterator[FlaskClient]:
    """label-studio-ml's server, which keeps its one model in a class attribute."""
    yield init_app(ToxicityModel, services=services, model_dir=str(tmp_path / "theirs")).test_client()
    type(_manager)._current_model = {}


def learned(store: ExampleStore, project: int = 1) -> list[LabelledComment]:
    snapshot = store.snapshot(project, BEGINNING)
    return store.comments(project, snapshot, sorted(snapshot.targets))


def test_it_is_a_label_studio_ml_model(services: Services) -> None:
    model = ToxicityModel(DEFAULT_CONFIG, services=services, project="7.1795389861", hostname="h", access_token="t")
    assert isinstance(model, LabelStudioMLBase)
    assert (model.label_config, model.project, model.train_output) == (DEFAULT_CONFIG, 7, {})


def test_making_a_model_loads_nothing(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveModels, "of", lambda *_: pytest.fail("a version was loaded"))
    ToxicityModel(DEFAULT_CONFIG, services=services, project=1)


def test_a_config_that_does_not_fit_is_refused_where_the_model_is_made(services: Services) -> None:
    with pytest.raises(LabelStudioError, match="no <Text"):
        ToxicityModel("<View/>", services=services)


def test_all_results_of_one_call_come_from_one_version(services: Services, redis_settings: Settings) -> None:
    publish(ProjectVersions(redis_settings.models_dir(), 1), 4)
    model = ToxicityModel(services=services, project=1)
    results = model.predict([{"data": {"text": "a"}}, {"data": {"text": "b"}}], context=None)
    assert [(result["model_version"], result["probabilities"]["toxic"]) for result in results] == [("v4", 0.04)] * 2


def test_tasks_without_text_are_told_to_the_log(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    model = ToxicityModel(services=services, project=1)
    model.predict([{"data": {"text": "a"}}])
    assert "no text" not in caplog.text
    model.predict([{"data": {"text": "a"}}, {"data": {"comment": "canary"}}, {}])
    assert "project 1: 2 of 3 tasks have no text in data.text" in caplog.text
    assert "canary" not in caplog.text


def test_without_services_they_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for field in dataclasses.fields(Settings):  # whoever runs this may have set some
        monkeypatch.delenv(field.name.upper(), raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    built: list[Settings] = []
    followed: list[LiveModels] = []

    def build(settings: Settings) -> Services:
        built.append(settings)
        return Services(LiveModels(settings), Batching(100), Recording(settings))

    monkeypatch.setattr("backend.model.build_services", build)
    monkeypatch.setattr(
        LiveModels, "start", lambda live_models: followed.append(live_models)
    )  # or it would load TensorFlow in the background
    services_of_this_process.cache_clear()
    ToxicityModel()
    ToxicityModel()
    services_of_this_process().close()
    services_of_this_process.cache_clear()
    assert len(followed) == 1, "nobody follows what is published: the model would never swap"
    assert built == [replace(Settings(), data_dir=tmp_path)]


def test_their_server_predicts_in_the_same_form_as_ours(their_client: FlaskClient) -> None:
    setup = their_client.post("/setup", json={"project": "1.1795389861", "schema": DEFAULT_CONFIG})
    assert (setup.status_code, setup.json) == (200, {"model_version": "INITIAL"})
    tasks = [{"id": 1, "data": {"text": "nice"}}, {"id": 2, "data": {}}, {"id": 3}]
    body = {"tasks": tasks, "project": "1.1795389861", "label_config": DEFAULT_CONFIG, "params": {"context": None}}
    answer = their_client.post("/predict", json=body)
    assert answer.status_code == 200
    assert answer.json == {"results": [CLEAN_PREDICTION] * 3, "model_version": "INITIAL"}


def test_their_server_predicts_with_the_version_of_the_tasks_project(their_client: FlaskClient, redis_settings: Settings) -> None:
    publish(ProjectVersions(redis_settings.models_dir(), 1), 60)
    their_client.post("/setup", json={"project": "1.1795389861", "schema": DEFAULT_CONFIG})
    answer = their_client.post("/predict", json={"tasks": [{"id": 1, "project": 1, "data": {"text": "bad"}}]}).json
    region = {"from_name": "toxicity", "to_name": "text", "type": "choices", "value": {"choices": list(LABELS)}}
    assert answer is not None
    assert answer["results"] == [
        {"result": [region], "score": 0.2, "model_version": "v60", "probabilities": dict.fromkeys(LABELS, 0.6)}
    ]


@pytest.mark.processes
def test_their_webhook_records_the_example_in_a_process_of_its_own(
    their_client: FlaskClient,
    store: ExampleStore,
    redis_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_settings.redis_url)
    monkeypatch.setenv("DATA_DIR", str(redis_settings.data_dir))
    services_of_this_process.cache_clear()
    answer = their_client.post("/webhook", json=EVENT | {"action": "ANNOTATION_CREATED"})
    assert answer.status_code == 201
    deadline = time.monotonic() + 30
    while not learned(store) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in multiprocessing.active_children():
        process.join(10)
    assert learned(store) == [LabelledComment("you idiot", TOXIC)]


def test_fit_with_an_event_records_it(services: Services, store: ExampleStore, tmp_path: Path) -> None:
    model = ToxicityModel(services=services)
    assert model.fit((), event="ANNOTATION_CREATED", data=EVENT, job_id="1", workdir=str(tmp_path)) == {"changed": 1}
    assert learned(store) == [LabelledComment("you idiot", TOXIC)]
    assert model.fit((), event="ANNOTATIONS_DELETED", data={"annotations": [{"id": 1}], "project": {"id": 1}}) == {"changed": 1}
    assert learned(store) == []


def test_fit_with_start_training_answers_the_job(services: Services, connection: redis.Redis, redis_settings: Settings) -> None:
    model = ToxicityModel(services=services)
    assert model.fit((), event="START_TRAINING", data={"project": {"id": 1}}) == {"changed": 0, "job": "train-1-0"}
    assert TrainingQueue(connection, redis_settings).queue.get_job_ids() == ["train-1-0"]


def test_fit_with_annotated_tasks_records_them(services: Services, store: ExampleStore) -> None:
    tasks = [
        {"id": 10, "data": {"text": "you idiot"}, "annotations": [{"id": 1, "result": TICKED}]},
        {"id": 11, "data": {"text": "thanks"}, "annotations": [{"id": 2, "result": []}]},
        {"id": 12, "data": {"text": "skipped"}, "annotations": [{"id": 3, "result": [], "was_cancelled": True}]},
        {"id": 13, "data": {"text": "nobody looked"}, "annotations": []},
        {"id": 14, "data": {"text": "nobody looked"}},
    ]
    assert ToxicityModel(services=services, project=2).fit(iter(tasks), workdir=None) == {"changed": 2}
    assert learned(store, 2) == [LabelledComment("you idiot", TOXIC), LabelledComment("thanks", (0.0,) * 6)]


def test_fit_without_annotations_does_nothing(services: Services, store: ExampleStore) -> None:
    assert ToxicityModel(services=services).fit([{"id": 1, "data": {"text": "a"}}]) == {"changed": 0}
    assert ToxicityModel(services=services).fit(()) == {"changed": 0}
    assert store.projects() == []


def test_fit_with_annotated_tasks_of_no_project_is_refused(services: Services) -> None:
    tasks = [{"id": 10, "data": {"text": "a"}, "annotations": [{"id": 1, "result": []}]}]
    with pytest.raises(LabelStudioError, match="project=ID"):
        ToxicityModel(services=services).fit(tasks)
