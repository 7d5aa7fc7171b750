"""The commands: `python -m toxicity COMMAND`.

Not here: what they do; each is a call into the module that does it. Settings come from the environment (settings.py).
"""

import argparse
import sys
from pathlib import Path

from toxicity.settings import EMBEDDED, Settings, settings_from_environment, settings_table
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
    rollback.add_argument("version", type=version, help="e.g. v3; v0 is the starter")
    rollback.add_argument("--project", type=int, required=True, help="the Label Studio project")
    rollback.set_defaults(run=_rollback)
    starter = commands.add_parser("starter", help="make the starter from a Jigsaw-format CSV")
    starter.add_argument("corpus", type=Path, help="CSV with comment_text and the six labels")
    starter.set_defaults(run=_starter)
    return parser


def version(text: str) -> int:
    """Return the number in `v3` or `3`."""
    number = text.removeprefix("v")
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no version: give one like v3, or v0 for the starter")
    return int(number)


def _up(parsed: argparse.Namespace, settings: Settings) -> int:
    from toxicity.stack import run_stack

    return run_stack(settings)


def _settings(parsed: argparse.Namespace, settings: Settings) -> int:
    print(settings_table())
    return 0


def _versions(parsed: argparse.Namespace, settings: Settings) -> int:
    projects = projects_with_versions(settings.models_dir()) if parsed.project is None else [parsed.project]
    if not projects:
        print(f"No project has trained yet: {version_name(STARTER_NUMBER)}, the starter, answers for every one.")
        return 0
    print(f"{'project':>8}  {'version':8} {'parent':7} {'made':26} {'new':>5} {'loss':>7}  in service")
    for project in projects:
        versions = ProjectVersions(settings.models_dir(), project)
        current = versions.current()
        starter = f"{project:8}  {version_name(STARTER_NUMBER):8} {'':7} {'the starter':26} {'':5} {'':7}"
        print(f"{starter}  {_mark(current == STARTER_NUMBER)}".rstrip())
        for number in versions.numbers():
            print(f"{project:8}  {version_name(number):8} {_described(versions, number)}  {_mark(current == number)}".rstrip())
    return 0


def _mark(in_service: bool) -> str:
    return "yes" if in_service else ""


def _described(versions: ProjectVersions, number: int) -> str:
    try:
        manifest = versions.manifest(number)
    except VersionError as error:
        return f"DAMAGED: {error}"
    learned, loss = manifest.training.get("new_examples", 0), manifest.measures.get("training_loss", float("nan"))
    return f"{version_name(manifest.parent):7} {manifest.created_at:26} {learned:5} {loss:7.4f}"


def _rollback(parsed: argparse.Namespace, settings: Settings) -> int:
    if parsed.project not in projects_with_versions(settings.models_dir()):
        raise VersionError(f"Project {parsed.project} has no versions in {settings.models_dir()}.")
    versions = ProjectVersions(settings.models_dir(), parsed.project)
    versions.make_current(parsed.version)
    print(f"project {parsed.project}: {version_name(parsed.version)} is in service; every process swaps to it by itself")
    print("The next training run starts from it and learns every annotation since. Correct or delete wrong ones before that.")
    return 0


def _starter(parsed: argparse.Namespace, settings: Settings) -> int:
    # TensorFlow takes seconds to import, which the other commands need not wait for.
    from toxicity.classifier import build_classifier
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
