"""Label Studio's JSON and labelling configs <-> our types. The only module that knows its field names.

Not here: calls to Label Studio (label_studio_api.py), HTTP (backend/app.py). Pure functions; everything that comes in is
checked, because Label Studio itself checks neither labels nor names nor scores.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from toxicity.labels import LABELS, canonical_label, confidence, ticked

DEFAULT_CONFIG = f"""<View>
  <Text name="text" value="$text"/>
  <Choices name="toxicity" toName="text" choice="multiple">
    {" ".join(f'<Choice value="{label}"/>' for label in LABELS)}
  </Choices>
</View>"""
"""The labelling config that README recommends, and that counts where a caller sends none."""

LARGEST_ID = 2**63 - 1  # what a database gives
UNNAMED_KEY = "$undefined$"  # where Label Studio puts the text of tasks imported from a file without columns


class LabelStudioError(ValueError):
    """What Label Studio (or whoever calls in its place) sent cannot be used; the message says why and what would."""


ANNOTATION_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_UPDATED")
ANNOTATION_DELETIONS = ("ANNOTATION_DELETED", "ANNOTATIONS_DELETED")
TASK_DELETIONS = ("TASK_DELETED", "TASKS_DELETED")
TRAINING_EVENTS = (*ANNOTATION_EVENTS, *ANNOTATION_DELETIONS, *TASK_DELETIONS, "PROJECT_DELETED", "START_TRAINING")
"""The webhook actions that change examples or ask for training; all others mean nothing here."""


@dataclass(frozen=True)
class LabellingConfig:
    """What of a labelling config matters here: a Choices tag over a Text tag. `choices` maps our label to theirs.

    `offered` holds every choice of the tag, whatever it means; `tag_names` the names of all tags.
    """

    from_name: str
    to_name: str
    text_key: str
    choices: Mapping[str, str]
    offered: frozenset[str]
    tag_names: frozenset[str]


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


@lru_cache(maxsize=256)
def read_config(label_config: str) -> LabellingConfig:
    """Find the Choices tag over a Text tag that offers most of the six labels.

    Raises:
        LabelStudioError: there is none; the message says what is missing.
    """
    try:
        root = fromstring(label_config)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise LabelStudioError(f"The labelling config is not XML that can be read ({error}).") from error
    texts = {name: tag.get("value", "") for tag in root.iter("Text") if (name := tag.get("name"))}
    if not texts:
        raise LabelStudioError(
            'The labelling config has no <Text name="text" value="$text"/> tag, so there is no comment to read.'
        )
    tag_names = frozenset(name for tag in root.iter() if (name := tag.get("name")))
    fitting, misses = [], []
    for tag in root.iter("Choices"):
        name, target, choices = tag.get("name"), tag.get("toName"), _choices(tag)
        if name is None or target not in texts:
            misses.append(f"<Choices name={name!r}> has toName={target!r}, which is no Text tag ({', '.join(map(repr, texts))})")
        elif not choices:
            misses.append(f"<Choices name={name!r}> offers none of {', '.join(LABELS)}")
        elif tag.get("choice", "single") != "multiple":
            misses.append(f'<Choices name={name!r}> takes one choice; a comment can bear several: set choice="multiple"')
        else:
            fitting.append(LabellingConfig(name, target, texts[target].removeprefix("$"), choices, _offered(tag), tag_names))
    if not fitting:
        raise LabelStudioError(f"The labelling config does not fit: {'; '.join(misses) or 'it has no Choices tag'}.")
    return max(fitting, key=lambda config: len(config.choices))


def _choices(tag: Element) -> dict[str, str]:
    """Map our labels to what a region has to carry: the Choice's alias where there is one, else its value."""
    choices: dict[str, str] = {}
    for choice in tag.iter("Choice"):
        names = [name for name in (choice.get("alias"), choice.get("value")) if name]
        label = next((label for name in names if (label := canonical_label(name))), None)
        if label is not None:
            choices.setdefault(label, names[0])
    return {label: choices[label] for label in LABELS if label in choices}


def _offered(tag: Element) -> frozenset[str]:
    return frozenset(name for choice in tag.iter("Choice") for key in ("alias", "value") if (name := choice.get(key)))


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
        return Changes(project, annotations=tuple(_annotations(payload, read_config(label_config))))
    if action in ANNOTATION_DELETIONS:
        return Changes(project, deleted_annotations=tuple(_ids(payload, "annotations", "annotation")))
    if action in TASK_DELETIONS:
        return Changes(project, deleted_tasks=tuple(_ids(payload, "tasks", "task")))
    return Changes(project, project_deleted=action == "PROJECT_DELETED", start_training=action == "START_TRAINING")


def _annotations(payload: Mapping[str, Any], config: LabellingConfig) -> Iterable[Annotation]:
    tasks = {_id(task): task for task in _listed(payload.get("task", payload.get("tasks")))}
    for annotation in _listed(payload.get("annotation", payload.get("annotations"))):
        task_id = annotation.get("task")
        if task_id is None and len(tasks) == 1:
            task_id = next(iter(tasks))
        if not isinstance(task_id, int) or task_id not in tasks:
            raise LabelStudioError(f"Annotation {_id(annotation)} belongs to a task that the event does not carry.")
        read = read_annotation(annotation, tasks[task_id], config)
        if read is not None:
            yield read


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
