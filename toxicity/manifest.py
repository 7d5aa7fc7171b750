"""What is known of a version: the manifest that lies beside its weights, as JSON.

Not here: where versions lie and which is in service (versions.py), and how a verdict is reached (verdict.py).
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from toxicity.calibration import Calibration

FORMAT = 2


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate may go into service, and why (not); judged on so many `comments` of that kind."""

    accepted: bool
    reasons: tuple[str, ...]
    judged_on: str
    comments: int


@dataclass(frozen=True)
class Manifest:
    """What is known of a version. `watermark` is the last annotation event that it has learned: publishing is the receipt.

    `parent` is the version whose weights it started from, and `best` the best of the line up to it, as judged on held-out
    comments; 0 is what the project started from.
    """

    name: str
    number: int
    parent: int
    parent_name: str
    best: int
    watermark: str
    created_at: str
    encoder: str
    fingerprint: str
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    calibration: Calibration
    golden_outputs: tuple[tuple[float, ...], ...]
    measures: dict[str, float]
    verdict: Verdict
    training: dict[str, Any]
    files: dict[str, str] = dataclasses.field(default_factory=dict)  # file name -> sha256
    format: int = FORMAT


def manifest_to_json(manifest: Manifest) -> str:
    """Return a manifest as JSON."""
    return json.dumps(dataclasses.asdict(manifest), indent=1)


def manifest_from_json(text: str) -> Manifest:
    """Read a manifest.

    Raises:
        ValueError, KeyError, TypeError: it is no JSON, of another format, or lacks something.
    """
    values = json.loads(text)
    if values["format"] != FORMAT:
        raise ValueError(f"it has format {values['format']}, this program reads {FORMAT}")
    for field in ("labels", "thresholds"):
        values[field] = tuple(values[field])
    values["golden_outputs"] = tuple(tuple(row) for row in values["golden_outputs"])
    values["calibration"] = Calibration(*(tuple(values["calibration"][field]) for field in ("slopes", "offsets")))
    values["verdict"] = Verdict(**{**values["verdict"], "reasons": tuple(values["verdict"]["reasons"])})
    values["files"] = dict(values["files"])
    return Manifest(**values)
