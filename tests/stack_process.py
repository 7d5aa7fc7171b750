"""`python -m toxicity up` for tests, as `make up` runs it, with settings of the test's own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.label_studio_server import free_port
from toxicity.settings import Settings

START_SECONDS = 300.0


class StackProcess:
    """The whole stack, started and ready; `output` is what its terminal shows."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        self.port = int(environment.setdefault("PORT", str(free_port())))
        self.url = f"http://127.0.0.1:{self.port}"
        data_dir.mkdir(parents=True, exist_ok=True)
        self._output = data_dir.parent / f"{data_dir.name}-output.txt"
        settings_unset = {name.upper() for name in Settings.__dataclass_fields__}
        inherited = {name: value for name, value in os.environ.items() if name not in settings_unset}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "toxicity", "up"],
                env={**inherited, "DATA_DIR": str(data_dir), **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parent.parent,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_until_ready(self) -> None:
        self.wait_for(lambda: "Ctrl-C stops everything." in self.output or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.output + self.logs()

    def wait_for(self, condition: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"nothing within {seconds} s\n{self.output}\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()}" for log in sorted((self.data_dir / "logs").glob("*.log")))

    def post(self, path: str, body: object, auth: tuple[str, str] | None = None) -> Any:
        return httpx.post(f"{self.url}{path}", json=body, auth=auth, timeout=100).raise_for_status().json()

    def stop(self, signum: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(60)
