"""The routes that Label Studio calls: health, setup, predict, webhook, versions.

Not here: what a prediction is (model.py), JSON's meaning (toxicity/label_studio.py). A client gets JSON whatever happens, and
never a traceback; a log never gets a comment's text.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response, jsonify, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge, ServiceUnavailable, Unauthorized

from backend.batching import OutOfTimeError
from backend.faults import place_of
from backend.guard import is_admitted
from backend.model import Services, ToxicityModel, build_services
from backend.spool import SpoolError
from toxicity.label_studio import project_id
from toxicity.labelling_config import LabellingConfigError, LabelStudioError, read_config
from toxicity.settings import LOG_FORMAT, SECRET_HEADER, Settings, settings_from_environment
from toxicity.versions import BASE_PROJECT, STARTER_NUMBER, ProjectVersions, VersionError, projects_with_versions

logger = logging.getLogger(__name__)

WAITING_PREDICTIONS = 8  # fewer than the threads beside those for predictions (backend/__main__.py)
SLOT_SECONDS = 10.0
RETRY_SECONDS = 5
MAX_REQUEST_BYTES = 256 * 1024 * 1024  # 3,000 tasks with comments of ordinary length take about 3 MB
MOST_TASKS = 50_000  # in one request: several times what is answered before Label Studio gives up


def create_app(settings: Settings | None = None, services: Services | None = None) -> Flask:
    """Return the application with its live models started; without arguments, from the environment (for gunicorn)."""
    if settings is None:
        settings = settings_from_environment()
        logging.basicConfig(level=settings.log_level, format=LOG_FORMAT)
    if services is None:
        services = build_services(settings)
        services.start()
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES
    app.json = StrictJson(app)
    app.extensions["toxicity"] = services

    @app.before_request
    def admit() -> None:
        if not is_admitted(settings, request):
            logger.warning("%s refused: no credentials, or wrong ones", request.path)
            raise Unauthorized(
                f"Give user and password of BASIC_AUTH_USER and BASIC_AUTH_PASS, or to /webhook its secret in {SECRET_HEADER}.",
                www_authenticate=WWWAuthenticate("basic", {"realm": "toxicity"}),
            )

    _add_routes(app, settings, services)
    _add_error_answers(app)
    return app


def _add_routes(app: Flask, settings: Settings, services: Services) -> None:
    slots = PredictionSlots(settings.threads)

    @app.get("/")
    @app.get("/health")
    def health() -> Response:
        return jsonify(status="UP", model_class=ToxicityModel.__name__)

    @app.post("/setup")
    def setup() -> Response:
        body = _body()
        if body.get("schema"):
            read_config(str(body["schema"]))  # a config that does not fit is told when it is connected, not at the first task
        return jsonify(model_version=services.live_models.version_in_service(project_id(body.get("project"))))

    @app.post("/predict")
    def predict() -> Response:
        body = _body()
        tasks = body.get("tasks")
        if not isinstance(tasks, list):
            raise LabelStudioError(f"'tasks' is {_kind(tasks)}; expected a list of Label Studio tasks.")
        if len(tasks) > MOST_TASKS:
            raise RequestEntityTooLarge(f"The request has {len(tasks)} tasks; at most {MOST_TASKS} are taken at once.")
        model = ToxicityModel(_config_text(body), services=services, project=body.get("project"))
        with slots.one():
            return jsonify(results=model.predict(tasks))

    @app.post("/webhook")
    def webhook() -> tuple[Response, int]:
        body = _body()
        action = body.pop("action", None)
        if not isinstance(action, str):
            raise LabelStudioError(f"'action' is {_kind(action)}; expected one of Label Studio's webhook actions.")
        model = ToxicityModel(services=services)
        return jsonify(model.fit((), event=action, data=body)), 201

    @app.get("/versions")
    def versions() -> Response:
        asked = project_id(request.args.get("project"))
        projects = [BASE_PROJECT, *projects_with_versions(settings.models_dir())] if asked is None else [asked]
        lines = [ProjectVersions(settings.models_dir(), project) for project in projects]
        names = [name for line in lines for name in _names(line)]
        return jsonify(versions=list(dict.fromkeys(names)))


def _names(versions: ProjectVersions) -> list[str]:
    numbers = versions.numbers()
    try:
        return [versions.name(number) for number in (STARTER_NUMBER, *numbers)]
    except VersionError:  # which base is in service cannot be read: the project's own versions are there all the same
        return [versions.name(number) for number in numbers]


class StrictJson(DefaultJSONProvider):
    """JSON in which no object has a key twice: readers disagree on which of the two counts."""

    sort_keys = False  # labels keep their order

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        """Return what JSON says.

        Raises:
            ValueError: it is none, or an object has a key twice.
        """
        return super().loads(s, object_pairs_hook=_object, **kwargs)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a key twice")
    return found


class PredictionSlots:
    """How many predictions are computed at the same time, and how many may wait: the threads beside them answer the rest."""

    def __init__(self, running: int) -> None:
        """Let `running` predictions in, and a few wait for one of them to end."""
        self._running = threading.Semaphore(running)
        self._waiting = threading.Semaphore(WAITING_PREDICTIONS)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a slot.

        Raises:
            ServiceUnavailable: too many wait already, or none ended in time.
        """
        if not self._running.acquire(blocking=False):
            if not self._waiting.acquire(blocking=False):
                raise self._busy()
            try:
                if not self._running.acquire(timeout=SLOT_SECONDS):
                    raise self._busy()
            finally:
                self._waiting.release()
        try:
            yield
        finally:
            self._running.release()

    @staticmethod
    def _busy() -> ServiceUnavailable:
        reason = "Every slot for predictions is taken: try again, ask for fewer tasks at once, or raise THREADS."
        return ServiceUnavailable(reason, retry_after=RETRY_SECONDS)


def _body() -> dict[str, Any]:
    try:
        body = request.get_json(force=True)
    except RecursionError:  # JSON nested a hundred thousand deep
        raise BadRequest from None
    if not isinstance(body, dict):
        raise LabelStudioError(f"The body is {_kind(body)}; expected a JSON object.")
    return body


def _config_text(body: dict[str, Any]) -> str | None:
    config = body.get("label_config")
    if config is not None and not isinstance(config, str):
        raise LabelStudioError(f"'label_config' is {_kind(config)}; expected the labelling config's XML.")
    return config


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def _add_error_answers(app: Flask) -> None:
    @app.errorhandler(LabelStudioError)
    def refuse(error: LabelStudioError) -> tuple[Response, int]:
        # Label Studio shows nobody the answer's body and sends its users here, to the log. What a payload holds stays out.
        reason = str(error) if isinstance(error, LabellingConfigError) else "the answer says why"
        logger.warning("%s refused: %s", request.path, reason)
        return jsonify(error=str(error)), 400

    @app.errorhandler(OutOfTimeError)
    def out_of_time(error: OutOfTimeError) -> tuple[Response, int, dict[str, str]]:
        logger.warning("%s: %s", request.path, error)
        return jsonify(error=str(error)), 503, {"Retry-After": str(RETRY_SECONDS)}

    @app.errorhandler(SpoolError)
    def not_recorded(error: SpoolError) -> tuple[Response, int]:
        logger.error("%s: %s", request.path, error)
        return jsonify(error=f"{error} Predictions go on."), 503

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> tuple[Response, int]:
        description = error.description
        if isinstance(error, BadRequest):
            description = "The body is no JSON that can be read, or an object in it has a key twice."
        elif isinstance(error, RequestEntityTooLarge) and description == RequestEntityTooLarge.description:
            description = (
                f"The body is larger than {MAX_REQUEST_BYTES // 2**20} MiB, the most that is taken: ask for fewer tasks."
            )
        answer = jsonify(error=description)
        kept = ("Retry-After", "WWW-Authenticate")
        answer.headers.extend({name: value for name, value in error.get_headers() if name in kept})
        return answer, error.code or 500

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> tuple[Response, int]:
        logger.error("%s failed: %s at %s", request.path, type(error).__name__, place_of(error))
        return jsonify(error=f"An unexpected {type(error).__name__} happened; the backend's log says where."), 500
