"""The product as its users have it: a real Label Studio, `make up`'s command, annotators who submit, and a new version."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.label_studio_server import LabelStudioServer
from tests.stack_process import StackProcess
from toxicity.labelling_config import DEFAULT_CONFIG

pytestmark = pytest.mark.processes

FRIENDLY = [
    "Thank you, this paragraph reads much better now.",
    "I moved the table below the introduction.",
    "Could you add a source for the second claim?",
    "Good catch, the year was wrong indeed.",
    "The map is from the public archive, so we may use it.",
    "I agree with the merge, both pages say the same.",
    "Welcome! The talk page is the right place to ask.",
    "Reverted by mistake, sorry, I have put it back.",
]
RUDE = [
    "What a stupid edit, only an idiot writes this.",
    "You are a pathetic liar and everybody knows it.",
    "Shut up, moron, nobody asked you.",
    "This is garbage and so are you.",
    "Get lost, you ignorant clown.",
    "Damn fool, keep your filthy hands off this page.",
    "I will find you and you will regret this edit.",
    "Your whole kind should be banned from here.",
]
COMMENTS = [comment for pair in zip(FRIENDLY, RUDE, strict=True) for comment in pair] + [
    f"{FRIENDLY[k % 8]} Part {k} is done." if k % 2 else f"{RUDE[k % 8]} And again, number {k}." for k in range(24)
]


class Moderator(threading.Thread):
    """Asks for one prediction after the other for as long as the test runs, and keeps every answer."""

    def __init__(self, url: str, project: int) -> None:
        super().__init__(daemon=True)
        self._url, self._project = f"{url}/predict", f"{project}.1795389861"
        self._done = threading.Event()
        self.failures: list[str] = []
        self.versions: list[str] = []

    def run(self) -> None:
        tasks = [{"id": k, "data": {"text": COMMENTS[k]}} for k in range(3)]
        body = {"tasks": tasks, "project": self._project, "label_config": DEFAULT_CONFIG, "params": {}}
        with httpx.Client(timeout=100) as client:
            while not self._done.is_set():
                try:
                    results = client.post(self._url, json=body).raise_for_status().json()["results"]
                    named = {result["model_version"] for result in results}
                    if len(results) != 3 or len(named) != 1:
                        self.failures.append(f"{len(results)} results of versions {named}")
                    self.versions.extend(named)
                except Exception as error:
                    self.failures.append(repr(error))
                time.sleep(0.05)

    def stop(self) -> None:
        self._done.set()
        self.join()


@pytest.fixture(scope="module")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioServer]:
    server = LabelStudioServer(tmp_path_factory.mktemp("label-studio") / "data")
    yield server
    server.stop()


def test_a_comment_labelled_in_label_studio_changes_the_next_prediction(label_studio: LabelStudioServer, tmp_path: Path) -> None:
    assert len(COMMENTS) == len(set(COMMENTS)) == 40
    credentials = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token}
    stack = StackProcess(tmp_path / "data", TRAIN_AFTER="8", TRAIN_WAIT="300", SWAP_POLL="0.5", **credentials)
    try:
        stack.wait_until_ready()
        project = label_studio.create_project(DEFAULT_CONFIG, COMMENTS)
        backend = connect(label_studio, stack, project)
        before = predictions_of(label_studio, project, "v0")
        loss_before = loss(stack, project)
        moderator = Moderator(stack.url, project)
        moderator.start()

        tasks = sorted(before)
        label_studio.annotate(tasks[20], [], skip=True)
        wrong = label_studio.annotate(tasks[21], ["threat"])
        label_studio.delete(f"/api/annotations/{wrong}/")
        for position in range(8):
            label_studio.annotate(tasks[position], labels_of(position))
        stack.wait_for(lambda: "v1" in moderator.versions, 180)

        after = predictions_of(label_studio, project, "v1")
        assert all(after[task]["score"] != before[task]["score"] for task in tasks)
        assert loss(stack, project) < loss_before
        assert annotated(stack, project, 1) == 8  # neither the skipped one nor the deleted one

        start_training_takes_over_what_was_imported_with_annotations(label_studio, stack, project, backend)
        stack.wait_for(lambda: "v2" in moderator.versions, 180)
        moderator.stop()
        assert moderator.failures == []
        in_order = [version for k, version in enumerate(moderator.versions) if k == 0 or moderator.versions[k - 1] != version]
        assert in_order == ["v0", "v1", "v2"]
        print(f"{len(moderator.versions)} predictions by {' then '.join(in_order)}, {len(moderator.failures)} failed")
        assert not any(comment in stack.logs() for comment in COMMENTS)
    finally:
        code = stack.stop()
    assert code == 0


def test_with_credentials_strangers_stay_out_and_label_studio_gets_in(label_studio: LabelStudioServer, tmp_path: Path) -> None:
    user, password, secret = "label-studio", "a password with spaces", "a-shared-secret"
    credentials = {"BASIC_AUTH_USER": user, "BASIC_AUTH_PASS": password, "WEBHOOK_SECRET": secret}
    credentials |= {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token}
    stack = StackProcess(tmp_path / "data", TRAIN_AFTER="1000", **credentials)
    try:
        stack.wait_until_ready()
        project = label_studio.create_project(DEFAULT_CONFIG, COMMENTS[:4])
        first, second = (task["id"] for task in label_studio.tasks(project)[:2])
        connect(label_studio, stack, project, auth_method="BASIC_AUTH", basic_auth_user=user, basic_auth_pass=password)
        predictions_of(label_studio, project, "v0")
        assert httpx.post(f"{stack.url}/predict", json={"tasks": []}).status_code == 401

        label_studio.annotate(first, ["toxic"])  # Label Studio sends no Basic Auth with it
        stack.wait_for(lambda: "/webhook refused: no credentials, or wrong ones" in stack.logs(), 30)
        command = [sys.executable, "-m", "toxicity", "secure-webhook", "--project", str(project)]
        environment = {**os.environ, **credentials, "DATA_DIR": str(stack.data_dir)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"project {project}: the webhook to {stack.url}/webhook carries the secret\n"
        label_studio.annotate(second, ["toxic"])
        stack.wait_for(lambda: f"project {project}: 1 examples changed" in stack.logs(), 30)

        told = stack.logs() + stack.output + done.stderr
        assert not any(word in told for word in (password, secret, label_studio.token))
    finally:
        stack.stop()


def labels_of(position: int) -> list[str]:
    """What the annotators say: the even ones are friendly, and clean comments are examples too."""
    return ["toxic", "insult"] if position % 2 else []


def loss(stack: StackProcess, project: int) -> float:
    """The live version's mean cross-entropy on the comments that are annotated."""
    tasks = [{"id": k, "data": {"text": COMMENTS[k]}} for k in range(8)]
    results = stack.post("/predict", {"tasks": tasks, "project": f"{project}.1795389861"})["results"]
    losses = [
        -math.log(probability if label in labels_of(k) else 1 - probability)
        for k, result in enumerate(results)
        for label, probability in result["probabilities"].items()
    ]
    return sum(losses) / len(losses)


def connect(label_studio: LabelStudioServer, stack: StackProcess, project: int, **credentials: str) -> int:
    backend = label_studio.post("/api/ml/", {"project": project, "url": stack.url, "title": "Toxicity", **credentials})
    assert backend["readable_state"] == "Connected"
    assert backend["model_version"] == "v0"
    webhooks = label_studio.get(f"/api/webhooks/?project={project}")
    assert [webhook["url"] for webhook in webhooks] == [f"{stack.url}/webhook"]
    assert label_studio.get(f"/api/ml/{backend['id']}/versions")["versions"] == ["v0"]
    identifier: int = backend["id"]
    return identifier


def predictions_of(label_studio: LabelStudioServer, project: int, version: str) -> dict[int, dict[str, object]]:
    """Retrieve predictions as the Data Manager does; there must be one of this version for every task."""
    label_studio.retrieve_predictions(project)
    predictions = label_studio.predictions(project, version)
    assert sorted(predictions) == [task["id"] for task in label_studio.tasks(project)]
    return predictions


def start_training_takes_over_what_was_imported_with_annotations(
    label_studio: LabelStudioServer, stack: StackProcess, project: int, backend: int
) -> None:
    """Label Studio sends no event for annotations that come with an import: START_TRAINING fetches them."""
    region = {"from_name": "toxicity", "to_name": "text", "type": "choices", "value": {"choices": ["toxic", "obscene"]}}
    tasks = [{"data": {"text": f"{RUDE[k]} (imported)"}, "annotations": [{"result": [region]}]} for k in range(3)]
    label_studio.post(f"/api/projects/{project}/import", tasks)
    label_studio.post(f"/api/ml/{backend}/train")
    stack.wait_for(lambda: (stack.data_dir / "models" / str(project) / "versions" / "2").exists(), 180)
    assert annotated(stack, project, 2) == 8 + 3


def annotated(stack: StackProcess, project: int, newest: int) -> int:
    """How many annotated examples a line of versions knows: those that each has learned, and those that are held out."""
    folder = stack.data_dir / "models" / str(project) / "versions"
    training = [json.loads((folder / str(number) / "model_card.json").read_text())["training"] for number in range(1, newest + 1)]
    return int(sum(each["new_examples"] for each in training) + training[-1]["held_out"])
