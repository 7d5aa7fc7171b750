"""Calls to Label Studio through its SDK: what its webhooks never sent, and how they say who sends them.

Not here: what its JSON means (label_studio.py). Importing tasks that carry annotations sends no annotation event, and an
annotation made before the backend was connected never will: those are taken over from here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import httpx
from label_studio_sdk import LabelStudio
from label_studio_sdk.core.api_error import ApiError

from toxicity.label_studio import Changes, readable_annotations
from toxicity.labelling_config import read_config
from toxicity.settings import SECRET_HEADER, Settings

PAGE_SIZE = 100


class LabelStudioApiError(Exception):
    """Label Studio did not answer, or refused; the message says what to look at and holds no task."""


def annotations_in_label_studio(settings: Settings, project: int) -> Iterator[Changes]:
    """Yield the annotations of a project as Label Studio has them, as changes to record, one page of tasks at a time.

    Raises:
        LabelStudioApiError: Label Studio did not answer, refused the token, or has no such project.
        LabelStudioError: the project's labelling config does not fit.
    """
    with _client(settings, project) as client:
        config = read_config(client.projects.get(id=project).label_config or "")
        tasks = (task.model_dump(mode="json") for task in client.tasks.list(project=project, fields="all", page_size=PAGE_SIZE))
        while page := list(islice(tasks, PAGE_SIZE)):
            annotated = [(annotation, task) for task in page for annotation in task.get("annotations") or []]
            annotations, errors = readable_annotations(annotated, config)
            yield Changes(project, annotations=tuple(annotations), unreadable=len(errors))


def secure_webhook(settings: Settings, project: int, backend_url: str | None = None) -> str:
    """Have the webhook that carries a project's annotations here carry WEBHOOK_SECRET too; return the webhook's URL.

    Label Studio makes it when a backend is connected, and sends no Basic Auth with it. `backend_url` says which backend's it is,
    where the project has several.

    Raises:
        LabelStudioApiError: Label Studio did not answer or refused, or there is no such webhook, or more than one.
    """
    with _client(settings, project) as client:
        backends = [backend.url for backend in client.ml.list(project=project)] if backend_url is None else [backend_url]
        wanted = {f"{url.rstrip('/')}/webhook" for url in backends if url}
        webhooks = [webhook for webhook in client.webhooks.list(project=str(project)) if webhook.url in wanted]
        if len(webhooks) != 1:
            known = ", ".join(sorted({webhook.url for webhook in webhooks})) or "none"
            raise LabelStudioApiError(
                f"Project {project} has {len(webhooks)} webhooks to its ML backends ({known}), expected one: connect the backend "
                "in Settings > Model, remove those that are left over in Settings > Webhooks, or name the backend by --url."
            )
        (webhook,) = webhooks
        headers = {**(webhook.headers or {}), SECRET_HEADER: settings.webhook_secret}
        client.webhooks.update(webhook.id, headers=headers)
        return str(webhook.url)


@contextmanager
def _client(settings: Settings, project: int) -> Iterator[Any]:
    try:
        yield LabelStudio(  # type: ignore[no-untyped-call] # the SDK declares no types here
            base_url=settings.label_studio_url, api_key=settings.label_studio_api_key
        )
    except ApiError as error:
        raise LabelStudioApiError(
            f"Label Studio at {settings.label_studio_url} answered {error.status_code} for project {project}: "
            "is LABEL_STUDIO_API_KEY a Personal Access Token that is still valid?"
        ) from error
    except httpx.HTTPError as error:
        raise LabelStudioApiError(
            f"Label Studio at {settings.label_studio_url} did not answer ({type(error).__name__})."
        ) from error
