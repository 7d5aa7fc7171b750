"""Versions on disk: publish atomically, find the current one, load and check, list, roll back, prune.

Not here: what weights mean (classifier.py), when to publish (worker/training.py). A version is a folder of data,
`<models>/<project>/versions/<number>/` with weights.safetensors, manifest.json and model_card.md, that is written aside,
synced and renamed into place, and never written again. `current` beside it names the version in service.
"""

import dataclasses
import re
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from toxicity.calibration import IDENTITY, Calibration
from toxicity.files import locked, sha256, sync
from toxicity.manifest import Manifest, manifest_from_json, manifest_to_json

WEIGHTS_FILE = "weights.safetensors"
CARD_FILE = "model_card.md"
CARD_JSON_FILE = "model_card.json"
MANIFEST_FILE = "manifest.json"
STARTER_NUMBER = 0
BASE_PROJECT = 0  # not one of Label Studio's: its versions are what other projects start from
CORPUS_SOURCE = "comments of a corpus"  # in a manifest's training facts: such a version has learned no annotation
LEFTOVER_SECONDS = 3600


class VersionError(Exception):
    """A version cannot be published, found or trusted; the message says which, why, and what to do."""


class OvertakenError(VersionError):
    """What a version was made to replace is no longer in service: it was judged against another one."""


class Predictor(Protocol):
    """What answers (toxicity/predicting.py), without TensorFlow in this module."""

    def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return probabilities of shape (len(comments), 6)."""

    def encode(self, comment: str) -> Sequence[int]:
        """Return a comment as predict_encoded takes it; its length says what it costs."""

    def predict_encoded(self, encoded: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return probabilities of shape (len(encoded), 6), computed in one batch."""


@dataclass(frozen=True)
class LoadedVersion:
    """A version in memory, checked and ready to answer. A request takes one and keeps it to its end."""

    name: str  # what Label Studio sees as model_version
    number: int
    thresholds: tuple[float, ...]
    watermark: str
    classifier: Predictor
    calibration: Calibration = IDENTITY
    trained: bool = True  # False: a fresh head over an encoder without a starter, whose answers mean nothing yet

    def predict(self, comments: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return calibrated probabilities of shape (len(comments), 6): what thresholds and screens are meant for."""
        return self.calibration(self.classifier.predict(comments))


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
        return max([chosen, *(number for number in self.numbers() if number > newest_seen and self._was_accepted(number))])

    def accepted(self) -> list[int]:
        """Return the numbers of the versions whose verdict lets them into service, ascending."""
        return [number for number in self.numbers() if self._was_accepted(number)]

    def _was_accepted(self, number: int) -> bool:
        try:
            return self.manifest(number).verdict.accepted
        except VersionError:  # removed meanwhile, or damaged: nothing to put into service
            return False

    def name(self, number: int) -> str:
        """Return what Label Studio sees as a version's model_version. 0 is what the project started from: a base, or v0.

        Raises:
            VersionError: it is 0, and which base is in service cannot be read.
        """
        if self.project == BASE_PROJECT:
            return f"base-v{number}" if number else f"v{STARTER_NUMBER}"
        if number != STARTER_NUMBER:
            return f"v{number}"
        base = ProjectVersions(self.root.parent, BASE_PROJECT)
        return base.name(base.current())

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
            manifest = manifest_from_json(path.read_text())
            if manifest.number != number or WEIGHTS_FILE not in manifest.files:
                raise VersionError(f"{path} is not the manifest of version {number}, or names no {WEIGHTS_FILE}.")
            return manifest
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
                found = sha256(path)
            except OSError as error:
                raise VersionError(f"{path} cannot be read ({error}).") from error
            if found != expected:
                raise VersionError(f"{path} has sha256 {found}, published was {expected}: the file is damaged.")
        try:
            return manifest, load_file(self.folder(number) / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise VersionError(f"The weights of version {number} of project {self.project} cannot be read ({error}).") from error

    def publish(
        self, manifest: Manifest, weights: dict[str, Any], cards: Mapping[str, str], replacing: str | None = None
    ) -> Manifest:
        """Write a version aside, rename it into place and make it current. Return the manifest as published.

        The rename fails where the number is taken already, which makes it the compare-and-set among rival runs. A version
        whose verdict is a rejection is kept like any other, and the live version stays. `cards` is file name -> text,
        `replacing` the name of the version that has to be in service until then (None: whichever is).

        Raises:
            OvertakenError: another version is in service. VersionError: another run published this number first.
            OSError: the disk is full or not writable. Nothing was published in either case.
        """
        self._versions.mkdir(parents=True, exist_ok=True)
        aside = self._versions / f".{manifest.number}.{uuid.uuid4().hex}"
        aside.mkdir()
        try:
            save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, aside / WEIGHTS_FILE)
            for name, text in cards.items():
                (aside / name).write_text(text)
            files = {name: sha256(aside / name) for name in (WEIGHTS_FILE, *cards)}
            published = dataclasses.replace(manifest, files=files)
            (aside / MANIFEST_FILE).write_text(manifest_to_json(published))
            for name in (*files, MANIFEST_FILE):
                sync(aside / name)
            sync(aside)
            with locked(self.root / "lock"):
                self._require(replacing)
                self._rename(aside, manifest.number)
                sync(self._versions)
                if manifest.verdict.accepted:
                    # Not the newest that exists: a rival may have published a newer one meanwhile, which must not count as seen.
                    self._point(manifest.number, newest_seen=manifest.number)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return published

    def _require(self, in_service: str | None) -> None:
        found = self.name(self.current()) if in_service is not None else None
        if found != in_service:
            raise OvertakenError(
                f"Project {self.project} is served by {found} and no longer by {in_service}; this run is dropped."
            )

    def _rename(self, aside: Path, number: int) -> None:
        try:
            aside.rename(self.folder(number))
        except OSError as error:
            if not self.folder(number).exists():
                raise
            raise VersionError(
                f"Version {number} of project {self.project} was published by another run; this one is dropped."
            ) from error

    def make_current(self, number: int) -> None:
        """Put a version in service, a rejected one too: every process swaps to it by itself. 0 is what the project started from.

        Raises:
            VersionError: there is no such version.
        """
        if number != STARTER_NUMBER and number not in self.numbers():
            known = ", ".join(self.name(known) for known in self.numbers()) or "none"
            raise VersionError(f"There is no version {self.name(number)}; there are {known}, and v0, where they started from.")
        with locked(self.root / "lock"):
            self._point(number, newest_seen=max([number, *self.numbers()]))

    def _point(self, number: int, newest_seen: int) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        aside = self._current.with_name(f".current.{uuid.uuid4().hex}")
        aside.write_text(f"{number} {newest_seen}\n")
        sync(aside)
        aside.replace(self._current)
        sync(self.root)

    def next_number(self) -> int:
        """Return the number that the next version gets: never one that was used before."""
        return max([STARTER_NUMBER, *self.numbers()]) + 1

    def size(self, number: int) -> int:
        """Return how many bytes a version's files take."""
        return sum(file.stat().st_size for file in self.folder(number).iterdir())

    def best(self, number: int) -> int:
        """Return the best version of the line up to a version, as judged on held-out comments; 0 where none is known."""
        if number == STARTER_NUMBER:
            return STARTER_NUMBER
        try:
            manifest = self.manifest(number)
        except VersionError:
            return STARTER_NUMBER
        # A rejected version that was put in service by hand begins anew: its rivals were worse in somebody's eyes.
        return manifest.best if manifest.verdict.accepted else number

    def prune(self, keep: int) -> list[int]:
        """Remove all but the newest `keep` accepted versions, the current one and the best; return what was removed.

        Rejected versions stay as long as the accepted ones of their time, `keep` of the newest at most. What a killed
        process left aside goes too, once it is too old to be a publication under way.
        """
        current = self.current()
        for leftover in [*self._versions.glob(".*.*"), *self.root.glob(".current.*")]:
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                remove = shutil.rmtree if leftover.is_dir() else Path.unlink
                remove(leftover)
        accepted = self.accepted()
        rejected = [number for number in self.numbers() if number not in accepted]
        kept = {current, self.best(current), *accepted[-keep:]}
        kept |= {number for number in rejected[-keep:] if number > min(kept)}
        removed = [number for number in self.numbers() if number not in kept]
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
