"""The LabelStudioMLBase subclass that people look for: predict and fit.

Not here: HTTP (app.py), the network (toxicity/classifier.py). The same class runs under our own app and under
label-studio-ml's server: `label_studio_ml.api.init_app(ToxicityModel, model_dir=..., services=...)`.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from backend.batching import Batching
from backend.live_model import LiveModels
from backend.recording import Recording
from toxicity.label_studio import TRAINING_EVENTS, Changes, comment_text, prediction, project_id, read_event, readable_annotations
from toxicity.labelling_config import DEFAULT_CONFIG, LabelStudioError, read_config
from toxicity.settings import Settings, settings_from_environment

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """What a web process has once and every request uses."""

    live_models: LiveModels
    batching: Batching
    recording: Recording

    def start(self) -> None:
        """Begin what goes on in the background: loading and following versions, recording what was spooled."""
        self.live_models.start()
        self.recording.start()

    def close(self) -> None:
        """End what start() began."""
        self.live_models.close()
        self.recording.close()


def build_services(settings: Settings) -> Services:
    """Return a process' services, not started yet."""
    return Services(LiveModels(settings), Batching(settings.cached_predictions), Recording(settings))


@cache
def services_of_this_process() -> Services:
    """Return services read from the environment: for label-studio-ml's server, which makes a model object for each /setup."""
    services = build_services(settings_from_environment())
    services.start()
    return services


class ToxicityModel(LabelStudioMLBase):  # type: ignore[misc] # label-studio-ml carries no types
    """Six labels on comments. Cheap to make: what is expensive lives in Services, once for the process."""

    # What label-studio-ml's own server passes on to fit(); its list has only three annotation events.
    TRAIN_EVENTS = TRAINING_EVENTS

    def __init__(
        self,
        label_config: str | None = None,
        train_output: dict[str, Any] | None = None,
        *,
        services: Services | None = None,
        project: object = None,
        **kwargs: Any,
    ) -> None:
        """Read the labelling config (none: the one that README recommends).

        Raises:
            LabelStudioError: the config has no Choices tag over a Text tag with any of the six labels.
        """
        # The base class would parse the config by rules of its own, and fail on some that are fine.
        super().__init__(label_config=None, train_output=train_output, **kwargs)
        self.label_config = label_config
        self.services = services or services_of_this_process()
        self.project = project_id(project)
        self._config = read_config(label_config or DEFAULT_CONFIG)

    def predict(self, tasks: Sequence[Mapping[str, Any]], **kwargs: Any) -> list[dict[str, Any]]:
        """Return one prediction for each task, in order, all of them by one version."""
        project = self.project if self.project is not None else _project_of(tasks)
        live = self.services.live_models.of(project)
        comments = [comment_text(task, self._config) for task in tasks]
        if blank := sum(not comment.strip() for comment in comments):
            logger.warning(
                "project %s: %d of %d tasks have no text in data.%s", project, blank, len(tasks), self._config.text_key
            )
        probabilities = self.services.batching.predict(live, comments)
        return [prediction(row, live.thresholds, live.name, self._config) for row in probabilities.tolist()]

    def fit(self, tasks: Iterable[Mapping[str, Any]], workdir: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Record what annotators decided and request training; never train here: the worker does.

        Takes label-studio-ml's `event` and `data` (one webhook), or tasks that carry annotations. Returns how many
        examples changed, and the training run's job id where one was asked for.

        Raises:
            LabelStudioError: the event cannot be read. SpoolError: nothing was recorded.
        """
        if "event" in kwargs:
            return self._record(read_event(kwargs["event"], kwargs.get("data") or {}))
        tasks = list(tasks)
        project = self.project if self.project is not None else _project_of(tasks)
        annotated = [(annotation, task) for task in tasks for annotation in task.get("annotations") or []]
        annotations, errors = readable_annotations(annotated, self._config)
        if errors and not annotations:
            raise errors[0]
        if not annotations:
            return {"changed": 0}
        if project is None:
            raise LabelStudioError(
                "These tasks name no project: give them as Label Studio has them, or pass project=ID to the model."
            )
        return self._record(Changes(project, annotations=tuple(annotations), unreadable=len(errors)))

    def _record(self, changes: Changes) -> dict[str, Any]:
        if changes.unreadable:
            logger.warning("project %s: %d annotations could not be read and are left out", changes.project, changes.unreadable)
        return self.services.recording.record(changes)


def _project_of(tasks: Sequence[object]) -> int | None:
    """Label Studio's tasks name their project themselves, which helps where the server passes it not on."""
    first = tasks[0] if tasks else None
    return project_id(first.get("project")) if isinstance(first, Mapping) else None
