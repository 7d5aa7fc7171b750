"""The model card of a version: what it was trained on, how, how good it is, and what it is not for; as JSON and as text.

Not here: the manifest, which programs read (manifest.py). A card counts comments and never quotes one.
"""

import importlib.metadata
import json
from typing import Any

from toxicity.labels import LABELS
from toxicity.manifest import Manifest
from toxicity.versions import CARD_FILE, CARD_JSON_FILE

PACKAGES = ("tensorflow", "tensorflow-cpu", "tf-keras", "tensorflow-hub", "bert-for-tf2", "sentencepiece", "numpy", "safetensors")
LIMITS = "It learned its annotators' judgement, mistakes included. It is to help moderators decide, not to decide alone."


def installed_packages() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # tensorflow or tensorflow-cpu, never both
            continue
    return installed


def model_cards(manifest: Manifest, project: int) -> dict[str, str]:
    """Return a version's cards: file name -> content."""
    return {CARD_JSON_FILE: json.dumps(_facts(manifest, project), indent=1), CARD_FILE: _text(manifest, project)}


def _facts(manifest: Manifest, project: int) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "project": project,
        "purpose": "six labels on a comment, for moderators",
        "labels": list(manifest.labels),
        "created_at": manifest.created_at,
        "parent": manifest.parent_name,
        "encoder": manifest.encoder,
        "training": manifest.training,
        "measures": manifest.measures,
        "verdict": {
            "accepted": manifest.verdict.accepted,
            "reasons": list(manifest.verdict.reasons),
            "judged_on": manifest.verdict.judged_on,
            "comments": manifest.verdict.comments,
        },
        "thresholds": dict(zip(manifest.labels, manifest.thresholds, strict=True)),
        "calibration": {"slopes": list(manifest.calibration.slopes), "offsets": list(manifest.calibration.offsets)},
        "limits": LIMITS,
    }


def _text(manifest: Manifest, project: int) -> str:
    training, verdict = manifest.training, manifest.verdict
    whose = f"project {project}" if project else "the base, which projects start from"
    packages = ", ".join(f"{package} {version}" for package, version in training["packages"].items())
    decided = "accepted" if verdict.accepted else "REJECTED"
    return f"""# {manifest.name} of {whose}

Puts six labels ({", ".join(manifest.labels)}) on a comment. Made {manifest.created_at}.

- Starts from {manifest.parent_name}; encoder `{manifest.encoder}`.
- Learned {training["new_examples"]} {training["source"]}, beside {training["replayed"]} replayed ones (older examples, and
  comments that were written for this purpose). Held out, and never learned: {training["held_out"]}.
- {training["epochs"]} epochs, learning rate {training["learning_rate"]}, batches of {training["batch_size"]},
  seed {training["seed"]}, at most {training["max_length"]} word pieces; {training["precision"]}.
- {packages}.
- Verdict: {decided}, judged on {verdict.comments} comments ({verdict.judged_on}): {"; ".join(verdict.reasons)}.

| label | ROC AUC | F1 | precision | recall | positives | threshold | calibration |
|---|---|---|---|---|---|---|---|
{chr(10).join(_row(manifest, column) for column in range(len(LABELS)))}

Mean ROC AUC {_shown(manifest.measures.get("mean_roc_auc"))}, log loss {_shown(manifest.measures.get("log_loss"))}, training loss
{_shown(manifest.measures.get("training_loss"))}. F1, precision, recall and log loss flatter a little where thresholds and
calibration were chosen on the comments that they are measured on. {LIMITS}
"""


def _row(manifest: Manifest, column: int) -> str:
    label = manifest.labels[column]
    values = [_shown(manifest.measures.get(f"{label}.{measure}")) for measure in ("roc_auc", "f1", "precision", "recall")]
    positives = manifest.measures.get(f"{label}.positives", 0)
    calibration = f"{manifest.calibration.slopes[column]:.3f} x {manifest.calibration.offsets[column]:+.3f}"
    return f"| {label} | {' | '.join(values)} | {positives:.0f} | {manifest.thresholds[column]:.3f} | {calibration} |"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
