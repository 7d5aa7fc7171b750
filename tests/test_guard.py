"""Who gets in: every route with no, wrong, right and odd credentials."""

import io
import logging
from base64 import b64encode
from dataclasses import replace

import pytest
import redis
from flask.testing import FlaskClient

from tests.test_app import annotation_event, client_of, task_of
from toxicity.settings import Settings

USER, PASSWORD, SECRET = "label-studio", "pass:wörd", "a-shared-secret"


def basic(user: str, password: str, encoding: str = "utf-8") -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode(encoding)).decode()}"}


RIGHT = basic(USER, PASSWORD)
SECRET_GIVEN = {"X-Toxicity-Secret": SECRET}
REFUSED: dict[str, dict[str, str]] = {
    "none": {},
    "wrong password": basic(USER, "wrong"),
    "wrong user": basic("somebody", PASSWORD),
    "longer password": basic(USER, PASSWORD + "x"),
    "empty": basic("", ""),
    "another encoding": basic(USER, PASSWORD, "latin-1"),
    "no base64": {"Authorization": "Basic ???"},
    "another scheme": {"Authorization": f"Bearer {SECRET}"},
    "a wrong secret": {"X-Toxicity-Secret": "wrong"},
    "an odd secret": {"X-Toxicity-Secret": "s\xe9cret"},
}


@pytest.fixture
def guarded(connection: redis.Redis, redis_settings: Settings) -> Settings:
    return replace(redis_settings, basic_auth_user=USER, basic_auth_pass=PASSWORD, webhook_secret=SECRET)


@pytest.fixture
def client(guarded: Settings) -> FlaskClient:
    return client_of(guarded)


ROUTES = [
    ("POST", "/setup", {"project": 1}, 200),
    ("POST", "/predict", {"tasks": [task_of("a")], "project": 1}, 200),
    ("POST", "/webhook", annotation_event(), 201),
    ("GET", "/versions", None, 200),
    ("GET", "/no-such-route", None, 404),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), ROUTES, ids=[path for _, path, _, _ in ROUTES])
def test_credentials_open_every_route(client: FlaskClient, method: str, path: str, body: object, status: int) -> None:
    assert client.open(path, method=method, json=body, headers=RIGHT).status_code == status


@pytest.mark.parametrize("refused", REFUSED)
@pytest.mark.parametrize(("method", "path", "body", "status"), ROUTES, ids=[path for _, path, _, _ in ROUTES])
def test_without_them_none_opens_and_nothing_is_told(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, method: str, path: str, body: object, status: int, refused: str
) -> None:
    caplog.set_level(logging.INFO)
    answer = client.open(path, method=method, json=body, headers=REFUSED[refused])
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Basic realm=toxicity")
    assert answer.json is not None
    assert answer.json["error"].startswith("Give user and password")
    for told in (caplog.text, answer.get_data(as_text=True)):
        assert not any(word in told for word in (USER, PASSWORD, SECRET, "somebody", "wrong\n"))


def test_label_studios_webhook_gets_in_by_the_secret_and_gets_nowhere_else(client: FlaskClient) -> None:
    assert client.post("/webhook", json=annotation_event(), headers=SECRET_GIVEN).json == {"changed": 1}
    assert client.post("/predict", json={"tasks": []}, headers=SECRET_GIVEN).status_code == 401


@pytest.mark.parametrize("path", ["/", "/health"])
def test_a_probe_needs_no_credentials(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 200


def test_a_large_body_of_a_stranger_is_not_read(client: FlaskClient) -> None:
    class Unread(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise AssertionError("the body was read")

    answer = client.post("/predict", input_stream=Unread(), content_length=10**9)
    assert answer.status_code == 401


@pytest.mark.parametrize(
    ("host", "credentials", "listened_on"),
    [
        ("127.0.0.1", False, "127.0.0.1"),
        ("localhost", False, "localhost"),
        ("::1", False, "::1"),
        ("0.0.0.0", False, "127.0.0.1"),  # noqa: S104 # what must not be listened on
        ("::", False, "127.0.0.1"),
        ("192.0.2.7", False, "127.0.0.1"),
        ("moderation.example", False, "127.0.0.1"),
        ("0.0.0.0", True, "0.0.0.0"),  # noqa: S104 # with credentials it may be
        ("moderation.example", True, "moderation.example"),
    ],
)
def test_without_credentials_only_this_machine_is_listened_to(
    guarded: Settings, host: str, credentials: bool, listened_on: str
) -> None:
    settings = replace(guarded, host=host) if credentials else Settings(host=host)
    assert settings.listening_host() == listened_on
    told = settings.narrowed_host()
    assert told == "" if host == listened_on else told.startswith(f"HOST={host} is not listened on, only 127.0.0.1")


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"basic_auth_user": "u"}, "BASIC_AUTH_USER is set without BASIC_AUTH_PASS and WEBHOOK_SECRET"),
        ({"basic_auth_user": "u", "basic_auth_pass": "p"}, "BASIC_AUTH_USER is set without WEBHOOK_SECRET"),
        ({"webhook_secret": "s"}, "WEBHOOK_SECRET is set without BASIC_AUTH_USER and BASIC_AUTH_PASS"),
        ({"basic_auth_user": "u:v", "basic_auth_pass": "p", "webhook_secret": "s"}, "BASIC_AUTH_USER holds a colon"),
    ],
)
def test_credentials_that_cannot_work_are_refused_at_the_start(given: dict[str, str], missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        Settings(**given)  # type: ignore[arg-type] # names and texts of a test's own


def test_secrets_are_not_shown(guarded: Settings) -> None:
    assert PASSWORD not in repr(guarded)
    assert SECRET not in repr(guarded)
