"""Calls to Label Studio through its SDK: what its webhooks never sent.

Not here: what its JSON means (label_studio.py). Importing tasks that carry annotations sends no annotation event, and an
annotation made before the backend was connected never will: those are taken over from here.
"""

from collections.abc import Iterator
from typing import Any

from label_studio_sdk import LabelStudio

from toxicity.label_studio import Annotation, read_annotation, read_config
from toxicity.settings import Settings

PAGE_SIZE = 100


def annotations_in_label_studio(settings: Settings, project: int) -> Iterator[list[Annotation]]:
    """Yield the annotations of a project as Label Studio has them, one page of tasks at a time.

    Raises:
        label_studio_sdk.core.ApiError, httpx.HTTPError: Label Studio did not answer or refused the token.
        LabelStudioError: the project's labelling config does not fit.
    """
    # The SDK declares no types here.
    client: Any = LabelStudio(  # type: ignore[no-untyped-call]
        base_url=settings.label_studio_url, api_key=settings.label_studio_api_key
    )
    config = read_config(client.projects.get(id=project).label_config or "")
    tasks: list[Annotation] = []
    for position, task in enumerate(client.tasks.list(project=project, fields="all", page_size=PAGE_SIZE), start=1):
        values = task.model_dump(mode="json")
        read = (read_annotation(annotation, values, config) for annotation in values.get("annotations") or [])
        tasks.extend(annotation for annotation in read if annotation is not None)
        if position % PAGE_SIZE == 0:
            yield tasks
            tasks = []
    yield tasks
