"""The web process' routes through Flask's test client, on a real Redis and without TensorFlow."""

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import redis
from flask.testing import FlaskClient

from backend.app import create_app
from backend.batching import Batching, OutOfTimeError
from backend.live_model import LiveModels, Loader
from backend.model import Services
from backend.recording import Recording
from tests.conftest import CARDS, REJECTED, PredictorStandIn, load_without_tensorflow, manifest_of, publish
from toxicity.calibration import Calibration
from toxicity.examples import BEGINNING, ExampleStore
from toxicity.labelling_config import DEFAULT_CONFIG
from toxicity.labels import DEFAULT_THRESHOLDS, LABELS
from toxicity.settings import Settings
from toxicity.training_queue import TrainingQueue
from toxicity.versions import BASE_PROJECT, LoadedVersion, Predictor, ProjectVersions

CANARY = "canary-7f3a"
IMAGES_ONLY = '<View><Image name="img" value="$image"/></View>'
OTHER_CHOICES = '<View><Text name="t" value="$text"/><Choices name="c" toName="t"><Choice value="spam"/></Choices></View>'


@pytest.fixture
def store(connection: redis.Redis) -> ExampleStore:
    return ExampleStore(connection)


def services_of(settings: Settings, loader: Loader = load_without_tensorflow) -> Services:
    return Services(LiveModels(settings, loader), Batching(100), Recording(settings))


def loader_of(predictor: Predictor) -> Loader:
    """A loader whose every version answers by this predictor."""

    def load(settings: Settings, versions: ProjectVersions, number: int) -> LoadedVersion:
        return LoadedVersion(versions.name(number), number, DEFAULT_THRESHOLDS, BEGINNING, predictor)

    return load


def client_of(settings: Settings, loader: Loader = load_without_tensorflow) -> FlaskClient:
    return create_app(settings, services_of(settings, loader)).test_client()


@pytest.fixture
def client(connection: redis.Redis, redis_settings: Settings) -> FlaskClient:
    return client_of(redis_settings)


@pytest.fixture(params=["no such socket", "a socket that never answers"])
def deaf_settings(settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Settings whose Redis is down, or hangs."""
    address = str(tmp_path / "deaf.sock")
    with closing(socket.socket(socket.AF_UNIX)) as listening:
        if request.param != "no such socket":
            listening.bind(address)
            listening.listen()
        yield replace(settings, redis_url=f"unix://{address}")


def annotation_event(action: str = "ANNOTATION_CREATED", **changed: Any) -> dict[str, Any]:
    region = {"from_name": "toxicity", "to_name": "text", "type": "choices", "value": {"choices": ["toxic", "insult"]}}
    annotation = {"id": 1, "task": 10, "result": [region], "was_cancelled": False, "updated_at": "2026-01-01T10:00:00Z"}
    task = {"id": 10, "data": {"text": f"you idiot {CANARY}"}}
    project = {"id": 1, "label_config": DEFAULT_CONFIG}
    return {"action": action, "annotation": annotation, "task": task, "project": project} | changed


def task_of(text: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"text": text}}


def logged(caplog: pytest.LogCaptureFixture) -> str:
    return caplog.text + repr([(record.msg, record.args, record.exc_info) for record in caplog.records])


@pytest.mark.parametrize("path", ["/", "/health"])
def test_health_says_up(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json) == (200, {"status": "UP", "model_class": "ToxicityModel"})


def test_setup_answers_with_the_version_in_service(client: FlaskClient, redis_settings: Settings) -> None:
    body = {"project": "1.1795389861", "schema": DEFAULT_CONFIG, "hostname": "", "access_token": "", "extra_params": None}
    assert client.post("/setup", json=body).json == {"model_version": "v0"}
    publish(ProjectVersions(redis_settings.models_dir(), 1), 1)
    assert client.post("/setup", json=body).json == {"model_version": "v1"}
    assert client.post("/setup", json={}).json == {"model_version": "v0"}


def test_predictions_bear_the_version_that_setup_tells(client: FlaskClient, redis_settings: Settings) -> None:
    publish(ProjectVersions(redis_settings.models_dir(), 1), 3)
    told = client.post("/setup", json={"project": "1.5"}).json
    results = client.post("/predict", json={"project": "1.5", "tasks": [task_of("a"), task_of("b")]}).json
    assert told == {"model_version": "v3"}
    assert results is not None
    assert [result["model_version"] for result in results["results"]] == ["v3", "v3"]


def test_a_clean_prediction_in_full(client: FlaskClient) -> None:
    answer = client.post("/predict", json={"tasks": [task_of("nice")], "label_config": DEFAULT_CONFIG, "params": {}})
    probabilities = dict.fromkeys(LABELS, 0.0)
    expected = {"result": [], "score": 1.0, "model_version": "v0", "probabilities": probabilities}
    assert (answer.status_code, answer.json) == (200, {"results": [expected]})


def test_a_toxic_prediction_in_full(client: FlaskClient, redis_settings: Settings) -> None:
    publish(ProjectVersions(redis_settings.models_dir(), 1), 60)
    answer = client.post("/predict", json={"tasks": [task_of("bad")], "project": 1}).json
    region = {"from_name": "toxicity", "to_name": "text", "type": "choices", "value": {"choices": list(LABELS)}}
    probabilities = dict.fromkeys(LABELS, 0.6)
    assert answer == {"results": [{"result": [region], "score": 0.2, "model_version": "v60", "probabilities": probabilities}]}


def test_the_tasks_own_project_counts_where_the_request_names_none(client: FlaskClient, redis_settings: Settings) -> None:
    publish(ProjectVersions(redis_settings.models_dir(), 5), 2)
    answer = client.post("/predict", json={"tasks": [task_of("a") | {"project": 5}]}).json
    assert answer is not None
    assert answer["results"][0]["model_version"] == "v2"


class LengthPredictor(PredictorStandIn):
    """Answers with each comment's length, so that an answer shows which comment it belongs to."""

    def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([[len(comment) / 1_000_000] * 6 for comment in comments], np.float32).reshape(-1, 6)


def test_odd_tasks_get_one_result_each_in_order(redis_settings: Settings) -> None:
    odd: list[Any] = ["x" * 100_000, None, "", 12345, "🤬" * 7, "مرحبا بكم", "half \ud83d", 1.5, True, ["a"], {"a": 1}, "\x00"]
    tasks = [task_of(text) for text in odd] + [{"id": 1}, {"id": 2, "data": {}}, {"id": 3, "data": None}, None, 7, "task"]
    answer = client_of(redis_settings, loader_of(LengthPredictor())).post("/predict", data=json.dumps({"tasks": tasks}))
    assert answer.status_code == 200
    assert answer.json is not None
    lengths = [round(result["probabilities"]["toxic"] * 1_000_000) for result in answer.json["results"]]
    assert lengths == [100_000, 0, 0, 5, 7, 9, 6, 3, 4, 5, 8, 1, 0, 0, 0, 0, 0, 0]


def test_no_tasks_get_no_results(client: FlaskClient) -> None:
    answer = client.post("/predict", json={"tasks": [], "project": "1.5"})
    assert (answer.status_code, answer.json) == (200, {"results": []})


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/predict", {}, "'tasks' is missing"),
        ("/predict", {"tasks": None}, "'tasks' is missing"),
        ("/predict", {"tasks": {"id": 1}}, "'tasks' is of type dict"),
        ("/predict", {"tasks": "text"}, "'tasks' is of type str"),
        ("/predict", {"tasks": [], "label_config": 5}, "'label_config' is of type int"),
        ("/predict", {"tasks": [], "label_config": IMAGES_ONLY}, "no <Text name="),
        ("/predict", {"tasks": [], "label_config": OTHER_CHOICES}, "offers none of toxic"),
        ("/predict", {"tasks": [], "label_config": "<View"}, "is not XML"),
        ("/predict", {"tasks": [], "project": "one"}, "The project is 'one'"),
        ("/predict", [], "The body is of type list"),
        ("/setup", {"schema": IMAGES_ONLY}, "no <Text name="),
        ("/setup", {"schema": OTHER_CHOICES}, "offers none of toxic"),
        ("/setup", {"schema": "<View"}, "is not XML"),
        ("/setup", {"project": "../../etc"}, "The project is '../../etc'"),
        ("/setup", "text", "The body is of type str"),
        ("/webhook", {}, "'action' is missing"),
        ("/webhook", {"action": 5}, "'action' is of type int"),
        ("/webhook", {"action": "ANNOTATION_CREATED"}, "without project.id"),
        ("/webhook", annotation_event(annotation={"id": "one", "task": 10, "result": []}), "An id is 'one'"),
        ("/webhook", annotation_event(annotation=None), "must be objects"),
        ("/webhook", annotation_event(task={"id": 11}), "does not carry"),
        ("/webhook", annotation_event(project={"id": 1, "label_config": OTHER_CHOICES}), "offers none of toxic"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(client: FlaskClient, path: str, body: Any, told: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json is not None
    assert told in answer.json["error"]


@pytest.mark.parametrize("path", ["/predict", "/setup", "/webhook"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"tasks": [}',
        b"[" * 100_000,
        b'{"tasks": [], "tasks": []}',
        b'{"tasks": [{"a": {"b": 1, "b": 2}}]}',
    ],
    ids=["empty", "open", "no UTF-8", "broken", "deep", "a key twice", "a key twice inside"],
)
def test_broken_json_is_refused_as_json(client: FlaskClient, path: str, data: bytes) -> None:
    answer = client.post(path, data=data)
    assert (answer.status_code, answer.json) == (
        400,
        {"error": "The body is no JSON that can be read, or an object in it has a key twice."},
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside a JSON value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/webhook", annotation_event()),
        ("/webhook", {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}], "project": {"id": 1}}),
        ("/webhook", {"action": "TASKS_DELETED", "tasks": [{"id": 1}]}),
        ("/webhook", {"action": "START_TRAINING", "project": {"id": 1}}),
        ("/predict", {"tasks": [{"id": 1, "data": {"text": "a"}, "project": 1}], "label_config": DEFAULT_CONFIG}),
        ("/setup", {"project": "1.5", "schema": DEFAULT_CONFIG}),
    ],
)
def test_no_value_of_the_wrong_kind_anywhere_is_a_fault_of_ours(client: FlaskClient, path: str, body: Any) -> None:
    odd: list[Any] = [
        None,
        "",
        0,
        -1,
        1.5,
        True,
        [],
        {},
        "x",
        "\ud83d",
        [None],
        [[]],
        {"id": None},
        10**400,
        float("nan"),
        [["toxic"]],
    ]
    faults = []
    for place in places(body):
        for value in odd:
            changed = holder = {"body": json.loads(json.dumps(body))}
            for key in ("body", *place)[:-1]:
                holder = holder[key]
            holder[("body", *place)[-1]] = value
            answer = client.post(path, data=json.dumps(changed["body"]))
            if answer.status_code >= 500 or not answer.is_json:
                faults.append((place, value))
    assert faults == []


@pytest.mark.parametrize("config", [None, ""])
def test_without_a_config_the_recommended_one_counts(client: FlaskClient, config: str | None) -> None:
    assert client.post("/predict", json={"tasks": [task_of("a")], "label_config": config}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/predict", 405), ("POST", "/health", 405), ("POST", "/versions", 405)],
)
def test_an_unknown_route_or_method_is_answered_in_json(client: FlaskClient, method: str, path: str, status: int) -> None:
    answer = client.open(path, method=method)
    assert answer.status_code == status
    assert answer.json is not None
    assert list(answer.json) == ["error"]


def test_a_body_over_the_limit_is_answered_in_json(client: FlaskClient) -> None:
    client.application.config["MAX_CONTENT_LENGTH"] = 1000
    answer = client.post("/predict", json={"tasks": [task_of("x" * 2000)]})
    told = {"error": "The body is larger than 256 MiB, the most that is taken: ask for fewer tasks."}
    assert (answer.status_code, answer.json) == (413, told)


def test_more_tasks_than_can_be_answered_in_time_are_refused(client: FlaskClient) -> None:
    answer = client.post("/predict", json={"tasks": [{}] * 50_001})
    assert (answer.status_code, answer.json) == (413, {"error": "The request has 50001 tasks; at most 50000 are taken at once."})


@pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_UPDATED"])
def test_an_annotation_event_becomes_an_example(client: FlaskClient, store: ExampleStore, action: str) -> None:
    event = annotation_event(action)
    if action.startswith("ANNOTATIONS"):
        event |= {"annotation": [event["annotation"]], "task": [event["task"]]}
    answer = client.post("/webhook", json=event)
    assert (answer.status_code, answer.json) == (201, {"changed": 1})
    assert store.snapshot(1, BEGINNING).targets == {10: (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)}


@pytest.mark.parametrize(
    "event",
    [
        {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}], "project": {"id": 1}},
        {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}]},
        {"action": "ANNOTATION_DELETED", "annotation": {"id": 1}, "project": {"id": 1}},
        {"action": "TASKS_DELETED", "tasks": [{"id": 10}]},
        {"action": "TASK_DELETED", "task": {"id": 10}, "project": {"id": 1}},
        {"action": "PROJECT_DELETED", "project": {"id": 1}},
        annotation_event("ANNOTATION_UPDATED") | {"annotation": {"id": 1, "task": 10, "result": [], "was_cancelled": True,
                                                                "updated_at": "2026-01-01T11:00:00Z"}},
    ],
    ids=lambda event: event["action"],
)  # fmt: skip
def test_what_is_deleted_or_skipped_is_no_example_any_more(
    client: FlaskClient, store: ExampleStore, event: dict[str, Any]
) -> None:
    client.post("/webhook", json=annotation_event())
    answer = client.post("/webhook", json=event)
    assert (answer.status_code, answer.json) == (201, {"changed": 0 if event["action"] == "PROJECT_DELETED" else 1})
    assert store.snapshot(1, BEGINNING).targets == {}


@pytest.mark.parametrize(
    "event",
    [
        {"action": "PROJECT_UPDATED", "project": {"id": 1}},
        {"action": "TASKS_CREATED", "tasks": [{"id": 1}], "project": {"id": 1}},
        {"action": "LABEL_LINK_CREATED"},
        {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 404}], "project": {"id": 1}},
        {"action": "START_TRAINING"},
    ],
    ids=lambda event: event["action"],
)
def test_an_event_that_means_nothing_for_examples_is_accepted(client: FlaskClient, event: dict[str, Any]) -> None:
    answer = client.post("/webhook", json=event)
    assert (answer.status_code, answer.json) == (201, {"changed": 0})


def test_start_training_queues_a_run_and_answers_its_id(
    client: FlaskClient, connection: redis.Redis, redis_settings: Settings
) -> None:
    event = {"action": "START_TRAINING", "project": {"id": 1, "title": CANARY}}
    answers = [client.post("/webhook", json=event).json for _ in range(2)]
    assert answers == [{"changed": 0, "job": "train-1-0"}] * 2
    training = TrainingQueue(connection, redis_settings)
    assert training.queue.get_job_ids() == ["train-1-0"]
    assert training.awaiting_take_over() == [1]
    assert CANARY not in repr(connection.hgetall("rq:job:train-1-0"))


@pytest.mark.parametrize("event", [annotation_event(), {"action": "START_TRAINING", "project": {"id": 1}}])
def test_without_redis_the_webhook_spools_within_a_second_and_predictions_go_on(
    deaf_settings: Settings, event: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(deaf_settings)
    started = time.monotonic()
    answer = client.post("/webhook", json=event)
    assert time.monotonic() - started < 1.0
    assert (answer.status_code, answer.json) == (201, {"spooled": True})
    assert len(list((deaf_settings.data_dir / "spool").glob("*.json"))) == 1
    assert CANARY not in logged(caplog)
    assert client.post("/predict", json={"tasks": [task_of("a")], "project": 1}).status_code == 200
    assert client.post("/setup", json={"project": 1}).json == {"model_version": "v0"}


def test_with_neither_redis_nor_a_disk_the_webhook_says_what_to_look_at(
    deaf_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    spool = deaf_settings.data_dir / "spool"
    spool.parent.mkdir(parents=True)
    spool.touch()  # no folder can be made in its place
    answer = client_of(deaf_settings).post("/webhook", json=annotation_event())
    assert answer.status_code == 503
    assert answer.json == {
        "error": f"Redis cannot take this event, and {spool} cannot keep it (File exists): it is not recorded. Predictions go on."
    }
    assert "it is not recorded" in caplog.text
    assert CANARY not in logged(caplog)


def test_health_and_setup_answer_while_the_model_is_loading(redis_settings: Settings) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def load_slowly(settings: Settings, versions: ProjectVersions, number: int) -> LoadedVersion:
        loading.set()
        assert go_on.wait(30)
        return load_without_tensorflow(settings, versions, number)

    services = services_of(redis_settings, load_slowly)
    client = create_app(redis_settings, services).test_client()
    services.live_models.start()
    assert loading.wait(10)
    started = time.monotonic()
    assert client.get("/health").status_code == 200
    assert client.post("/setup", json={"project": 1, "schema": DEFAULT_CONFIG}).json == {"model_version": "v0"}
    assert time.monotonic() - started < 0.5
    go_on.set()
    assert client.post("/predict", json={"tasks": [task_of("a")]}).status_code == 200
    services.live_models.close()


class FailingPredictor(PredictorStandIn):
    """Fails with the comments in its message, as libraries like to do."""

    def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]:
        raise RuntimeError(f"cannot read {comments}")


def test_an_unexpected_fault_is_answered_and_logged_without_the_comment(
    redis_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = client_of(redis_settings, loader_of(FailingPredictor())).post("/predict", json={"tasks": [task_of(CANARY)]})
    assert answer.status_code == 500
    assert answer.json == {"error": "An unexpected RuntimeError happened; the backend's log says where."}
    assert CANARY not in logged(caplog)
    assert re.search(r"failed: RuntimeError at \S+test_app.py:\d+", caplog.text)


def test_no_log_record_holds_a_comment(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert client.post("/predict", json={"tasks": [task_of(CANARY)], "project": "1.5"}).status_code == 200
    assert client.post("/webhook", json=annotation_event()).status_code == 201
    assert client.post("/webhook", json=annotation_event(task={"id": 11, "data": {"text": CANARY}})).status_code == 400
    assert client.post("/predict", data=f'{{"tasks": ["{CANARY}"').status_code == 400
    assert client.post("/predict", json={"tasks": [], "project": CANARY}).status_code == 400
    assert "project 1: 1 examples changed" in caplog.text
    assert CANARY not in logged(caplog)


def test_versions_lists_the_starter_and_what_was_published(client: FlaskClient, redis_settings: Settings) -> None:
    assert client.get("/versions").json == {"versions": ["v0"]}
    for project, number in ((1, 1), (1, 2), (2, 1), (2, 10)):
        publish(ProjectVersions(redis_settings.models_dir(), project), number)
    assert client.get("/versions?project=1.1795389861").json == {"versions": ["v0", "v1", "v2"]}
    assert client.get("/versions?project=3").json == {"versions": ["v0"]}
    assert client.get("/versions").json == {"versions": ["v0", "v1", "v2", "v10"]}
    assert client.get("/versions?project=x").status_code == 400


def test_versions_lists_bases_by_their_names_and_rejected_versions_too(client: FlaskClient, redis_settings: Settings) -> None:
    models = redis_settings.models_dir()
    publish(ProjectVersions(models, 1), 1)
    publish(ProjectVersions(models, 1), 2, verdict=REJECTED)
    publish(ProjectVersions(models, BASE_PROJECT), 1)
    assert client.get("/versions").json == {"versions": ["v0", "base-v1", "v1", "v2"]}
    assert client.get("/versions?project=1").json == {"versions": ["base-v1", "v1", "v2"]}
    assert client.get("/versions?project=0").json == {"versions": ["v0", "base-v1"]}


def test_versions_are_listed_where_the_bases_pointer_is_damaged(client: FlaskClient, redis_settings: Settings) -> None:
    base = ProjectVersions(redis_settings.models_dir(), BASE_PROJECT)
    for versions in (base, ProjectVersions(redis_settings.models_dir(), 1)):
        publish(versions, 1)
    (base.root / "current").write_text("rubbish")
    assert client.get("/versions").json == {"versions": ["v0", "base-v1", "v1"]}
    assert client.get("/versions?project=1").json == {"versions": ["v1"]}


def test_a_project_without_versions_is_set_up_and_predicted_by_the_base(client: FlaskClient, redis_settings: Settings) -> None:
    publish(ProjectVersions(redis_settings.models_dir(), BASE_PROJECT), 6)
    assert client.post("/setup", json={"project": "1.5"}).json == {"model_version": "base-v6"}
    answer = client.post("/predict", json={"tasks": [task_of("a")], "project": "1.5"}).json
    assert answer is not None
    assert (answer["results"][0]["model_version"], answer["results"][0]["probabilities"]["toxic"]) == ("base-v6", 0.06)
    publish(ProjectVersions(redis_settings.models_dir(), 2), 1)
    assert client.post("/setup", json={"project": "2.5"}).json == {"model_version": "v1"}


def test_predictions_are_calibrated_before_thresholds_are_applied(client: FlaskClient, redis_settings: Settings) -> None:
    offsets = (2.0, 0.0, 0.0, 0.0, 0.0, -2.0)
    manifest = replace(manifest_of(60), calibration=Calibration((1.0,) * 6, offsets), thresholds=(0.9, 0.7, 0.59, 0.5, 0.5, 0.1))
    ProjectVersions(redis_settings.models_dir(), 1).publish(manifest, {"weight": np.zeros(3, np.float32)}, CARDS)
    answer = client.post("/predict", json={"tasks": [task_of("bad")], "project": 1}).json
    assert answer is not None
    (result,) = answer["results"]
    expected = {label: 1 / (1 + np.exp(-(np.log(0.6 / 0.4) + offset))) for label, offset in zip(LABELS, offsets, strict=True)}
    assert result["probabilities"] == pytest.approx(expected, abs=1e-4)
    assert result["result"][0]["value"]["choices"] == ["toxic", "obscene", "threat", "insult", "identity_hate"]


def test_when_every_slot_is_taken_a_prediction_is_refused_and_the_rest_answers(
    redis_settings: Settings, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.app.SLOT_SECONDS", 0.1)
    entered, leave = threading.Event(), threading.Event()

    class Slow(PredictorStandIn):
        def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]:
            entered.set()
            assert leave.wait(30)
            return np.zeros((len(comments), len(LABELS)), np.float32)

    app = create_app(replace(redis_settings, threads=1), services_of(redis_settings, loader_of(Slow())))
    body = {"tasks": [{"data": {"text": "hello"}}]}
    statuses: list[int] = []
    first = threading.Thread(target=lambda: statuses.append(app.test_client().post("/predict", json=body).status_code))
    first.start()
    assert entered.wait(30)
    refused = app.test_client().post("/predict", json=body)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert "raise THREADS" in refused.get_json()["error"]
    assert app.test_client().get("/health").status_code == 200
    assert app.test_client().post("/setup", json={}).get_json() == {"model_version": "v0"}
    leave.set()
    first.join()
    assert statuses == [200]
    assert app.test_client().post("/predict", json=body).status_code == 200


def test_why_a_config_does_not_fit_stands_in_the_log_to_which_label_studio_sends_its_users(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.post("/setup", json={"project": "1.2", "schema": IMAGES_ONLY}).status_code == 400
    assert any("/setup refused: The labelling config has no <Text" in record.getMessage() for record in caplog.records)


def test_a_request_that_took_too_long_is_answered_503(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(*_: object) -> None:
        raise OutOfTimeError("9 of 30 comments were computed")

    monkeypatch.setattr(Batching, "predict", predict)
    answer = client.post("/predict", json={"tasks": [task_of("bread")] * 30})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.get_json() == {"error": "9 of 30 comments were computed"}
