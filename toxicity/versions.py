"""Versions on disk: publish atomically, find the current one, load and check, list, roll back, prune.

Not here: what weights mean (classifier.py), when to publish (worker/training.py). A version is a folder of data,
`<models>/<project>/versions/<number>/` with weights.safetensors, manifest.json and model_card.md, that is written aside,
synced and renamed into place, and never written again. `current` beside it names the version in service.
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

FORMAT = 1
WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "model_card.md"
MANIFEST_FILE = "manifest.json"
STARTER_NUMBER = 0
LEFTOVER_SECONDS = 3600


class VersionError(Exception):
    """A version cannot be published, found or trusted; the message says which, why, and what to do."""


class Predictor(Protocol):
    """What answers: toxicity.classifier.Classifier, without TensorFlow in this module."""

    def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return probabilities of shape (len(comments), 6)."""


@dataclass(frozen=True)
class LoadedVersion:
    """A version in memory, checked and ready to answer. A request takes one and keeps it to its end."""

    number: int
    thresholds: tuple[float, ...]
    watermark: str
    classifier: Predictor

    @property
    def name(self) -> str:
        """What Label Studio sees as model_version."""
        return version_name(self.number)


@dataclass(frozen=True)
class Manifest:
    """What is known of a version. `watermark` is the last annotation event that it has learned: publishing is the receipt."""

    number: int
    parent: int
    watermark: str
    created_at: str
    fingerprint: str
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    golden_outputs: tuple[tuple[float, ...], ...]
    measures: dict[str, float]
    training: dict[str, Any]
    files: dict[str, str] = dataclasses.field(default_factory=dict)  # file name -> sha256
    format: int = FORMAT

    @property
    def name(self) -> str:
        """What Label Studio sees as model_version."""
        return version_name(self.number)


def version_name(number: int) -> str:
    """Return a version's name in answers and on screens: v0 is the starter."""
    return f"v{number}"


class ProjectVersions:
    """The versions of one project. Any number of processes may read; whoever publishes a number first has it."""

    def __init__(self, models_dir: Path, project: int) -> None:
        """Point at a project's folder; nothing is created before the first version is published."""
        self.project = project
        self.root = models_dir / str(project)
        self._versions = self.root / "versions"
        self._current = self.root / "current"

    def numbers(self) -> list[int]:
        """Return the numbers of all complete versions, ascending. The starter, 0, is no folder and not among them."""
        if not self._versions.is_dir():
            return []
        return sorted(int(entry.name) for entry in self._versions.iterdir() if re.fullmatch("[0-9]{1,12}", entry.name))

    def current(self) -> int:
        """Return the number of the version in service; 0, the starter, where none was published.

        The pointer file holds that number and the newest that existed when it was written. A version newer than both was
        published by a run that was killed before it could move the pointer: it counts, so that no run's work is lost.
        """
        try:
            text = self._current.read_text(errors="replace")
        except FileNotFoundError:
            text = f"{STARTER_NUMBER} {STARTER_NUMBER}"
        except OSError as error:
            raise VersionError(f"{self._current} cannot be read ({error}).") from error
        match = re.fullmatch(r"([0-9]{1,12}) ([0-9]{1,12})\s*", text)
        if match is None:
            raise VersionError(f"{self._current} says {text[:30]!r}, not two numbers: remove it to serve the newest version.")
        chosen, newest_seen = int(match[1]), int(match[2])
        return max([chosen, *(number for number in self.numbers() if number > newest_seen)])

    def folder(self, number: int) -> Path:
        """Return where a version lies."""
        return self._versions / str(number)

    def manifest(self, number: int) -> Manifest:
        """Read a version's manifest.

        Raises:
            VersionError: it is missing, damaged, or of another format.
        """
        path = self.folder(number) / MANIFEST_FILE
        try:
            values = json.loads(path.read_text())
            if values["format"] != FORMAT:
                raise VersionError(f"{path} has format {values['format']}, this program reads {FORMAT}.")
            if values["number"] != number or WEIGHTS_FILE not in dict(values["files"]):
                raise VersionError(f"{path} is not the manifest of version {number}, or names no {WEIGHTS_FILE}.")
            for field in ("labels", "thresholds"):
                values[field] = tuple(values[field])
            values["golden_outputs"] = tuple(tuple(row) for row in values["golden_outputs"])
            return Manifest(**values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VersionError(f"{path} cannot be read ({type(error).__name__}: {error}).") from error

    def load(self, number: int) -> tuple[Manifest, dict[str, Any]]:
        """Return a version's manifest and weights, its files checked against their checksums.

        Raises:
            VersionError: a file is missing or is not the one that was published.
        """
        manifest = self.manifest(number)
        for name, expected in manifest.files.items():
            path = self.folder(number) / name
            try:
                found = _sha256(path)
            except OSError as error:
                raise VersionError(f"{path} cannot be read ({error}).") from error
            if found != expected:
                raise VersionError(f"{path} has sha256 {found}, published was {expected}: the file is damaged.")
        try:
            return manifest, load_file(self.folder(number) / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise VersionError(f"The weights of version {number} of project {self.project} cannot be read ({error}).") from error

    def publish(self, manifest: Manifest, weights: dict[str, Any], card: str) -> Manifest:
        """Write a version aside, rename it into place and make it current. Return the manifest as published.

        The rename fails where the number is taken already, which makes it the compare-and-set among rival runs.

        Raises:
            VersionError: another run published this number first. OSError: the disk is full or not writable.
        """
        self._versions.mkdir(parents=True, exist_ok=True)
        aside = self._versions / f".{manifest.number}.{uuid.uuid4().hex}"
        aside.mkdir()
        try:
            save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, aside / WEIGHTS_FILE)
            (aside / CARD_FILE).write_text(card)
            files = {name: _sha256(aside / name) for name in (WEIGHTS_FILE, CARD_FILE)}
            published = dataclasses.replace(manifest, files=files)
            (aside / MANIFEST_FILE).write_text(json.dumps(dataclasses.asdict(published), indent=1))
            for name in (*files, MANIFEST_FILE):
                _sync(aside / name)
            _sync(aside)
            try:
                aside.rename(self.folder(manifest.number))
            except OSError as error:
                if not self.folder(manifest.number).exists():
                    raise
                message = (
                    f"Version {manifest.number} of project {self.project} was published by another run; this one is dropped."
                )
                raise VersionError(message) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        _sync(self._versions)
        # Not the newest that exists: a rival may have published a newer one meanwhile, which must not count as seen.
        self._point(manifest.number, newest_seen=manifest.number)
        return published

    def make_current(self, number: int) -> None:
        """Put a version in service: every process swaps to it by itself. 0 is the starter.

        Raises:
            VersionError: there is no such version.
        """
        if number != STARTER_NUMBER and number not in self.numbers():
            raise VersionError(f"Project {self.project} has no version {number}; it has {self.numbers()}, and 0, the starter.")
        self._point(number, newest_seen=max([number, *self.numbers()]))

    def _point(self, number: int, newest_seen: int) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        aside = self._current.with_name(f".current.{uuid.uuid4().hex}")
        aside.write_text(f"{number} {newest_seen}\n")
        _sync(aside)
        aside.replace(self._current)
        _sync(self.root)

    def next_number(self) -> int:
        """Return the number that the next version gets: never one that was used before."""
        return max([STARTER_NUMBER, *self.numbers()]) + 1

    def prune(self, keep: int) -> list[int]:
        """Remove all but the newest `keep` versions and the current one; return what was removed.

        What a killed process left aside goes too, once it is too old to be a publication under way.
        """
        current = self.current()
        for leftover in [*self._versions.glob(".*.*"), *self.root.glob(".current.*")]:
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                remove = shutil.rmtree if leftover.is_dir() else Path.unlink
                remove(leftover)
        removed = [number for number in self.numbers()[:-keep] if number != current]
        for number in removed:
            # Renamed first: a folder with a number is complete or gone, never half removed.
            aside = self._versions / f".{number}.{uuid.uuid4().hex}"
            self.folder(number).rename(aside)
            shutil.rmtree(aside)
        return removed


def projects_with_versions(models_dir: Path) -> list[int]:
    """Return the projects that have a folder of versions, ascending."""
    if not models_dir.is_dir():
        return []
    return sorted(int(entry.name) for entry in models_dir.iterdir() if re.fullmatch("[0-9]+", entry.name))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
