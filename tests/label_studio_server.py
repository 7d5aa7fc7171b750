"""A real Label Studio for tests: started on a free port with a data folder of its own, driven as its page drives it."""

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

PROGRAM = Path(__file__).parent.parent / ".venv-label-studio" / "bin" / "label-studio"
USER, PASSWORD = "annotator@example.com", "a-long-password"
START_SECONDS = 240.0

# What README tells users to set, and no telemetry from tests.
ENVIRONMENT = {
    "SSRF_PROTECTION_ENABLED": "false",
    "ML_BLOCK_LOCAL_IP": "false",
    "LATEST_VERSION_CHECK": "false",
    "COLLECT_ANALYTICS": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
}


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LabelStudioServer:
    """Label Studio in a process of its own, and a logged-in annotator's session with it."""

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(parents=True)
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rsplit(":", 1)[1]
        self.log = data_dir / "label-studio.log"
        address = ["--internal-host", "127.0.0.1", "--host", self.url, "--port", port]
        account = ["--username", USER, "--password", PASSWORD]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(PROGRAM), "start", "--no-browser", *address, *account],
                env={**os.environ, **ENVIRONMENT, "LABEL_STUDIO_BASE_DATA_DIR": str(data_dir)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._session = httpx.Client(base_url=self.url, timeout=120)
        self._wait()
        self._log_in()
        self.token: str = self.post("/api/token/")["token"]

    def stop(self) -> None:
        self._session.close()
        self._process.terminate()
        self._process.wait(30)

    def get(self, path: str) -> Any:
        return self._session.get(path).raise_for_status().json()

    def post(self, path: str, body: object = None) -> Any:
        response = self._session.post(path, json=body, headers=self._headers())
        assert response.is_success, f"{path}: {response.status_code} {response.text[:500]}"
        return response.json() if response.content else None

    def delete(self, path: str) -> None:
        self._session.delete(path, headers=self._headers()).raise_for_status()

    def create_project(self, label_config: str, comments: list[str]) -> int:
        project: int = self.post("/api/projects/", {"title": "Moderation", "label_config": label_config})["id"]
        self.post(f"/api/projects/{project}/import", [{"text": comment} for comment in comments])
        return project

    def tasks(self, project: int) -> list[dict[str, Any]]:
        page = self.get(f"/api/tasks/?project={project}&fields=all&page_size=500")
        tasks: list[dict[str, Any]] = sorted(page["tasks"], key=lambda task: task["id"])
        return tasks

    def annotate(self, task: int, labels: list[str], skip: bool = False) -> int:
        """Submit (or skip) as the page does; return the annotation's id."""
        region = {"from_name": "toxicity", "to_name": "text", "type": "choices", "value": {"choices": labels}}
        body = {"result": [region] if labels else [], "was_cancelled": skip, "lead_time": 2.5}
        annotation: int = self.post(f"/api/tasks/{task}/annotations/", body)["id"]
        return annotation

    def retrieve_predictions(self, project: int) -> None:
        everything = {"selectedItems": {"all": True, "excluded": []}}
        self.post(f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", everything)

    def predictions(self, project: int, version: str) -> dict[int, dict[str, Any]]:
        """Return the stored predictions of one model version by task; more than one for a task is an error."""
        found: dict[int, dict[str, Any]] = {}
        for prediction in self.get(f"/api/predictions/?project={project}"):
            if prediction["model_version"] == version:
                assert prediction["task"] not in found, f"task {prediction['task']} has two predictions of {version}"
                found[prediction["task"]] = prediction
        return found

    def _headers(self) -> dict[str, str]:
        return {"X-CSRFToken": self._session.cookies["csrftoken"], "Referer": self.url}

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            try:
                if self._session.get("/health").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise AssertionError(f"Label Studio did not start within {START_SECONDS} s:\n{self.log.read_text()[-3000:]}")

    def _log_in(self) -> None:
        self._session.get("/user/login/")
        form = {"email": USER, "password": PASSWORD, "csrfmiddlewaretoken": self._session.cookies["csrftoken"]}
        answer = self._session.post("/user/login/", data=form, headers={"Referer": self.url})
        assert answer.status_code == 302, answer.text[:500]
