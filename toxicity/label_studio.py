"""Label Studio's JSON <-> our types. The only module that knows its field names.

Not here: labelling configs (labelling_config.py), calls to Label Studio (label_studio_api.py), HTTP (backend/app.py). Pure
functions; everything that comes in is checked, because Label Studio itself checks neither labels nor names nor scores.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from toxicity.labelling_config import DEFAULT_CONFIG, LabellingConfig, LabelStudioError, read_config
from toxicity.labels import LABELS, canonical_label, confidence, ticked

LARGEST_ID = 2**63 - 1  # what a database gives
UNNAMED_KEY = "$undefined$"  # where Label Studio puts the text of tasks imported from a file without columns


ANNOTATION_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_UPDATED")
ANNOTATION_DELETIONS = ("ANNOTATION_DELETED", "ANNOTATIONS_DELETED")
TASK_DELETIONS = ("TASK_DELETED", "TASKS_DELETED")
TRAINING_EVENTS = (*ANNOTATION_EVENTS, *ANNOTATION_DELETIONS, *TASK_DELETIONS, "PROJECT_DELETED", "START_TRAINING")
"""The webhook actions that change examples or ask for training; all others mean nothing here."""


@dataclass(frozen=True)
class Annotation:
    """One annotator's decision on one comment; `targets` is None for Skip, which decides nothing.

    `updated_at` is an ISO time in UTC: later revisions compare greater as text. A target is None where the config does not
    offer that label.
    """

    annotation_id: int
    task_id: int
    updated_at: str
    text: str
    targets: tuple[float | None, ...] | None


@dataclass(frozen=True)
class Changes:
    """What one webhook event means for our examples; project is None where Label Studio left it out."""

    project: int | None
    annotations: tuple[Annotation, ...] = ()
    deleted_annotations: tuple[int, ...] = ()
    deleted_tasks: tuple[int, ...] = ()
    project_deleted: bool = False
    start_training: bool = False
    unreadable: int = 0


def project_id(value: object) -> int | None:
    """Return the number in `1`, `"1"` or `"1.1795389861"` (id and creation time); None where nothing was sent.

    Raises:
        LabelStudioError: it is something else.
    """
    if value is None or value == "":
        return None
    number = str(value).split(".")[0]
    if isinstance(value, bool) or not (number.isascii() and number.isdigit() and len(number) <= 18):
        raise LabelStudioError(f"The project is {str(value)[:40]!r}; expected its number, e.g. 1 or '1.1795389861'.")
    return int(number)


def comment_text(task: object, config: LabellingConfig) -> str:
    """Return a task's comment as text, whatever it holds: missing and null are empty, a number is its digits."""
    data = task.get("data") if isinstance(task, Mapping) else None
    if not isinstance(data, Mapping):
        return ""
    value = data.get(config.text_key, data.get(UNNAMED_KEY))
    return "" if value is None else str(value)


def prediction(
    probabilities: Sequence[float], thresholds: Sequence[float], model_version: str, config: LabellingConfig
) -> dict[str, Any]:
    """Return one prediction in Label Studio's form: one choices region, or none for a clean comment.

    Labels that the config does not offer are neither ticked nor counted in the score.
    """
    offered = [LABELS.index(label) for label in config.choices]
    chosen = [config.choices[label] for label in ticked(probabilities, thresholds) if label in config.choices]
    region = {"from_name": config.from_name, "to_name": config.to_name, "type": "choices", "value": {"choices": chosen}}
    return {
        "result": [region] if chosen else [],
        "score": round(confidence([probabilities[k] for k in offered], [thresholds[k] for k in offered]), 6),
        "model_version": model_version,
        "probabilities": {LABELS[k]: round(float(probabilities[k]), 6) for k in offered},
    }


def read_event(action: object, payload: Mapping[str, Any]) -> Changes:
    """Return what a webhook event means for our examples; an action that means nothing gives empty Changes.

    Raises:
        LabelStudioError: the payload lacks what its action needs, or the labelling config does not fit.
    """
    project_field = payload.get("project")
    project = project_id(project_field.get("id") if isinstance(project_field, Mapping) else project_field)
    if action in ANNOTATION_EVENTS:
        if project is None:
            raise LabelStudioError(f"{action} came without project.id, so its annotation belongs nowhere.")
        label_config = (project_field.get("label_config") if isinstance(project_field, Mapping) else None) or DEFAULT_CONFIG
        if not isinstance(label_config, str):
            raise LabelStudioError(f"project.label_config is of type {type(label_config).__name__}; expected the config's XML.")
        annotations, errors = _annotations(payload, read_config(label_config))
        if errors and not annotations:
            raise errors[0]
        return Changes(project, annotations=tuple(annotations), unreadable=len(errors))
    if action in ANNOTATION_DELETIONS:
        return Changes(project, deleted_annotations=tuple(_ids(payload, "annotations", "annotation")))
    if action in TASK_DELETIONS:
        return Changes(project, deleted_tasks=tuple(_ids(payload, "tasks", "task")))
    return Changes(project, project_deleted=action == "PROJECT_DELETED", start_training=action == "START_TRAINING")


def _annotations(payload: Mapping[str, Any], config: LabellingConfig) -> tuple[list[Annotation], list[LabelStudioError]]:
    tasks = {_id(task): task for task in _listed(payload.get("task", payload.get("tasks")))}
    only = next(iter(tasks.values())) if len(tasks) == 1 else None
    annotations = _listed(payload.get("annotation", payload.get("annotations")))
    named = [(annotation, annotation.get("task")) for annotation in annotations]
    return readable_annotations(
        [
            (annotation, only if task is None else tasks.get(task) if isinstance(task, int) else None)
            for annotation, task in named
        ],
        config,
    )


def readable_annotations(
    annotated: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]], config: LabellingConfig
) -> tuple[list[Annotation], list[LabelStudioError]]:
    """Return the annotations (each given with its task) that can be read, and why each of the others cannot.

    One odd annotation must not cost the thousands that come with it.
    """
    read: list[Annotation] = []
    errors: list[LabelStudioError] = []
    for annotation, task in annotated:
        try:
            if task is None:
                raise LabelStudioError(f"Annotation {_id(annotation)} belongs to a task that the event does not carry.")
            one = read_annotation(annotation, task, config)
        except LabelStudioError as error:
            errors.append(error)
        else:
            read.extend([one] if one is not None else [])
    return read, errors


def read_annotation(annotation: Mapping[str, Any], task: Mapping[str, Any], config: LabellingConfig) -> Annotation | None:
    """Return one of Label Studio's annotations in our terms; None if it was made under another labelling config.

    Raises:
        LabelStudioError: its result is no list of regions, or an id is missing.
    """
    updated_at = _comparable_time(annotation.get("updated_at") or annotation.get("created_at"))
    targets: tuple[float | None, ...] | None = None
    if not annotation.get("was_cancelled"):
        chosen = _chosen(annotation.get("result"), config)
        if chosen is None:
            return None  # reading it by this config would turn its ticks into 'clean'
        ticks = {canonical_label(choice) for choice in chosen} | {
            label for label, written in config.choices.items() if written in chosen
        }
        targets = tuple(float(label in ticks) if label in config.choices else None for label in LABELS)
    return Annotation(_id(annotation), _id(task), updated_at, comment_text(task, config), targets)


def _comparable_time(value: object) -> str:
    """Label Studio leaves out zero microseconds, so that its times do not compare as they are; '' for what is no time."""
    try:
        moment = datetime.fromisoformat(str(value))
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"
    except (ValueError, OverflowError):
        return ""


def _chosen(result: object, config: LabellingConfig) -> set[str] | None:
    """Return what was chosen in the Choices tag; None where a region names a tag or a choice that the config has not."""
    if not isinstance(result, list) or not all(isinstance(region, Mapping) for region in result):
        raise LabelStudioError(f"An annotation's result is of type {type(result).__name__}; expected a list of regions.")
    chosen: set[str] = set()
    for region in result:
        from_name = region.get("from_name", config.from_name if region.get("type") == "choices" else None)
        if from_name is not None and (not isinstance(from_name, str) or from_name not in config.tag_names):
            return None
        if from_name == config.from_name:
            chosen.update(_choices_of(region))
    known = all(choice in config.offered or canonical_label(choice) in config.choices for choice in chosen)
    return chosen if known else None


def _choices_of(region: Mapping[str, Any]) -> Iterable[str]:
    value = region.get("value")
    choices = value.get("choices") if isinstance(value, Mapping) else None
    if not isinstance(choices, list):
        raise LabelStudioError(f"A region's choices are of type {type(choices).__name__}; expected a list.")
    for choice in choices:
        yield str(choice[-1]) if isinstance(choice, list) and choice else str(choice)  # nested choices are paths


def _listed(value: object) -> list[Mapping[str, Any]]:
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise LabelStudioError("The event's annotation and task must be objects, or lists of objects.")
    return [entry for entry in entries if isinstance(entry, Mapping)]


def _ids(payload: Mapping[str, Any], plural: str, singular: str) -> Iterable[int]:
    return (_id(entry) for entry in _listed(payload.get(plural, payload.get(singular))))


def _id(entry: Mapping[str, Any]) -> int:
    value = entry.get("id")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_ID:
        raise LabelStudioError(f"An id is {str(value)[:40]!r}; expected a whole number.")
    return value
