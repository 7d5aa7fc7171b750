"""Calls to Label Studio through its SDK: what its webhooks never sent.

Not here: what its JSON means (label_studio.py). Importing tasks that carry annotations sends no annotation event, and an
annotation made before the backend was connected never will: those are taken over from here.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx
from label_studio_sdk import LabelStudio
from label_studio_sdk.core.api_error import ApiError

from toxicity.label_studio import Changes, readable_annotations
from toxicity.labelling_config import read_config
from toxicity.settings import Settings

PAGE_SIZE = 100


class LabelStudioApiError(Exception):
    """Label Studio did not answer, or refused; the message says what to look at and holds no task."""


def annotations_in_label_studio(settings: Settings, project: int) -> Iterator[Changes]:
    """Yield the annotations of a project as Label Studio has them, as changes to record, one page of tasks at a time.

    Raises:
        LabelStudioApiError: Label Studio did not answer, refused the token, or has no such project.
        LabelStudioError: the project's labelling config does not fit.
    """
    try:
        client: Any = LabelStudio(  # type: ignore[no-untyped-call] # the SDK declares no types here
            base_url=settings.label_studio_url, api_key=settings.label_studio_api_key
        )
        config = read_config(client.projects.get(id=project).label_config or "")
        tasks = (task.model_dump(mode="json") for task in client.tasks.list(project=project, fields="all", page_size=PAGE_SIZE))
        while page := list(islice(tasks, PAGE_SIZE)):
            annotated = [(annotation, task) for task in page for annotation in task.get("annotations") or []]
            annotations, errors = readable_annotations(annotated, config)
            yield Changes(project, annotations=tuple(annotations), unreadable=len(errors))
    except ApiError as error:
        raise LabelStudioApiError(
            f"Label Studio at {settings.label_studio_url} answered {error.status_code} for project {project}: "
            "is LABEL_STUDIO_API_KEY a Personal Access Token that is still valid?"
        ) from error
    except httpx.HTTPError as error:
        raise LabelStudioApiError(
            f"Label Studio at {settings.label_studio_url} did not answer ({type(error).__name__})."
        ) from error
