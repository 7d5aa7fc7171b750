"""The commands: `python -m toxicity COMMAND`.

Not here: what they do; each is a call into the module that does it. Settings come from the environment (settings.py).
"""

import argparse
import sys
from pathlib import Path

from toxicity.settings import Settings, settings_from_environment, settings_table
from toxicity.versions import STARTER_NUMBER, ProjectVersions, VersionError, projects_with_versions, version_name


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed, settings_from_environment())
    except (ValueError, VersionError, OSError) as error:
        print(f"toxicity: {error}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m toxicity", description="Six-label moderation for Label Studio.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start Redis, the worker and the backend on this machine")
    up.set_defaults(run=_up)
    settings = commands.add_parser("settings", help="print the table of settings as Markdown")
    settings.set_defaults(run=_settings)
    versions = commands.add_parser("versions", help="list each project's versions")
    versions.add_argument("--project", type=int, help="only this Label Studio project")
    versions.set_defaults(run=_versions)
    rollback = commands.add_parser("rollback", help="put an older version in service; every process swaps to it by itself")
    rollback.add_argument("version", type=_version_number, help="e.g. v3; v0 is the starter")
    rollback.add_argument("--project", type=int, required=True, help="the Label Studio project")
    rollback.set_defaults(run=_rollback)
    starter = commands.add_parser("starter", help="make the starter from a Jigsaw-format CSV")
    starter.add_argument("corpus", type=Path, help="CSV with comment_text and the six labels")
    starter.set_defaults(run=_starter)
    return parser


def _version_number(text: str) -> int:
    return int(text.removeprefix("v"))


def _up(parsed: argparse.Namespace, settings: Settings) -> int:
    from toxicity.stack import run_stack

    return run_stack(settings)


def _settings(parsed: argparse.Namespace, settings: Settings) -> int:
    print(settings_table())
    return 0


def _versions(parsed: argparse.Namespace, settings: Settings) -> int:
    projects = projects_with_versions(settings.models_dir()) if parsed.project is None else [parsed.project]
    print(f"{'project':>8}  {'version':8} {'parent':7} {'made':26} {'new':>5} {'loss':>7}  in service")
    for project in projects:
        versions = ProjectVersions(settings.models_dir(), project)
        current = versions.current()
        if not versions.numbers():
            print(f"{project:8}  {version_name(STARTER_NUMBER):8} {'':7} {'(the starter)':26} {'':5} {'':7}  yes")
        for number in versions.numbers():
            manifest = versions.manifest(number)
            learned = f"{manifest.training['new_examples']:5} {manifest.measures['training_loss']:7.4f}"
            live = "yes" if number == current else ""
            print(f"{project:8}  {manifest.name:8} {version_name(manifest.parent):7} {manifest.created_at:26} {learned}  {live}")
    return 0


def _rollback(parsed: argparse.Namespace, settings: Settings) -> int:
    versions = ProjectVersions(settings.models_dir(), parsed.project)
    before = versions.current()
    versions.make_current(parsed.version)
    print(f"project {parsed.project}: {version_name(parsed.version)} is in service instead of {version_name(before)}")
    return 0


def _starter(parsed: argparse.Namespace, settings: Settings) -> int:
    # TensorFlow takes seconds to import, which the other commands need not wait for.
    from toxicity.classifier import build_classifier
    from toxicity.encoder import EMBEDDED
    from toxicity.fine_tuning import Progress
    from toxicity.starter import make_starter, starter_file

    def report(progress: Progress) -> None:
        print(f"\rstep {progress.step} of {progress.steps}, loss {progress.loss:.4f} ", end="", flush=True)

    classifier = build_classifier(EMBEDDED, settings.data_dir, settings.max_length)
    metadata = make_starter(classifier, parsed.corpus, starter_file(), report)
    print(f"\n{starter_file()} written, {starter_file().stat().st_size} bytes: {metadata}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
