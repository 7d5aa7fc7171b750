"""Label Studio's JSON and labelling configs <-> our types. The only module that knows its field names.

Not here: calls to Label Studio (label_studio_api.py), HTTP (backend/app.py). Pure functions; everything that comes in is
checked, because Label Studio itself checks neither labels nor names nor scores.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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

UNNAMED_KEY = "$undefined$"  # where Label Studio puts the text of tasks imported from a file without columns


class LabelStudioError(ValueError):
    """What Label Studio (or whoever calls in its place) sent cannot be used; the message says why and what would."""


@dataclass(frozen=True)
class LabellingConfig:
    """What of a labelling config matters here: a Choices tag over a Text tag. `choices` maps our label to theirs."""

    from_name: str
    to_name: str
    text_key: str
    choices: Mapping[str, str]
    tag_names: frozenset[str]


@dataclass(frozen=True)
class Annotation:
    """One annotator's decision on one comment; `targets` is None for Skip, which decides nothing.

    `updated_at` is Label Studio's ISO time: later revisions compare greater. A target is None where the config does not
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
            fitting.append(LabellingConfig(name, target, texts[target].removeprefix("$"), choices, tag_names))
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
    if action in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_UPDATED"):
        if project is None:
            raise LabelStudioError(f"{action} came without project.id, so its annotation belongs nowhere.")
        label_config = project_field.get("label_config") if isinstance(project_field, Mapping) else None
        return Changes(project, annotations=tuple(_annotations(payload, read_config(label_config or DEFAULT_CONFIG))))
    if action in ("ANNOTATION_DELETED", "ANNOTATIONS_DELETED"):
        return Changes(project, deleted_annotations=tuple(_ids(payload, "annotations", "annotation")))
    if action in ("TASK_DELETED", "TASKS_DELETED"):
        return Changes(project, deleted_tasks=tuple(_ids(payload, "tasks", "task")))
    return Changes(project, project_deleted=action == "PROJECT_DELETED", start_training=action == "START_TRAINING")


def _annotations(payload: Mapping[str, Any], config: LabellingConfig) -> Iterable[Annotation]:
    tasks = {_id(task): task for task in _listed(payload.get("task", payload.get("tasks")))}
    for annotation in _listed(payload.get("annotation", payload.get("annotations"))):
        task_id = annotation.get("task", next(iter(tasks), None) if len(tasks) == 1 else None)
        if task_id not in tasks:
            raise LabelStudioError(
                f"Annotation {annotation.get('id')} belongs to task {task_id}, which the event does not carry."
            )
        read = read_annotation(annotation, tasks[task_id], config)
        if read is not None:
            yield read


def read_annotation(annotation: Mapping[str, Any], task: Mapping[str, Any], config: LabellingConfig) -> Annotation | None:
    """Return one of Label Studio's annotations in our terms; None if it was made under another labelling config.

    Raises:
        LabelStudioError: its result is no list of regions, or an id is missing.
    """
    result = annotation.get("result") or []
    if not isinstance(result, list) or not all(isinstance(region, Mapping) for region in result):
        raise LabelStudioError(
            f"Annotation {annotation.get('id')} has a result of type {type(result).__name__}, not a list of regions."
        )
    if any("from_name" in region and region["from_name"] not in config.tag_names for region in result):
        return None  # reading it by this config would turn its ticks into 'clean'
    targets: tuple[float | None, ...] | None = None
    if not annotation.get("was_cancelled"):
        chosen = {choice for region in result if region.get("from_name") == config.from_name for choice in _chosen(region)}
        ticks = {canonical_label(choice) for choice in chosen} | {
            label for label, written in config.choices.items() if written in chosen
        }
        targets = tuple(float(label in ticks) if label in config.choices else None for label in LABELS)
    updated_at = annotation.get("updated_at") or annotation.get("created_at") or ""
    return Annotation(_id(annotation), _id(task), str(updated_at), comment_text(task, config), targets)


def _chosen(region: Mapping[str, Any]) -> Iterable[str]:
    value = region.get("value")
    for choice in (value.get("choices") or []) if isinstance(value, Mapping) else []:
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
    if isinstance(value, bool) or not isinstance(value, int) or not math.isfinite(value) or value < 0:
        raise LabelStudioError(f"An id is {str(value)[:40]!r}; expected a whole number.")
    return value
