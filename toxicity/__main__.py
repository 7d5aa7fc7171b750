"""The commands: `python -m toxicity COMMAND`.

Not here: what they do; each is a call into the module that does it. Settings come from the environment (settings.py).
TensorFlow takes seconds to import, so only the commands that need it import what imports it.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from toxicity.corpus import read_comments, read_corpus, require_writable, split_corpus
from toxicity.settings import EMBEDDED, SPOOL, Settings, quiet_tensorflow, settings_from_environment, settings_table
from toxicity.terminal import print_measures, shown, training_bar
from toxicity.versions import BASE_PROJECT, STARTER_NUMBER, ProjectVersions, VersionError, projects_with_versions

INTERRUPTED = 130
PROJECT_HELP = "the Label Studio project; without it, the base: what projects start from"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    parsed = _parser().parse_args(arguments)
    quiet_tensorflow()
    try:
        code: int = parsed.run(parsed, settings_from_environment())
    except (ValueError, VersionError, OSError) as error:
        print(f"toxicity: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntoxicity: interrupted; nothing is left half written", file=sys.stderr)
        return INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m toxicity", description="Six-label moderation for Label Studio.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace, Settings], int], purpose: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=purpose, description=purpose)
        added.set_defaults(run=run)
        return added

    command("up", _up, "start Redis, the worker and the backend on this machine")
    command("settings", _settings, "print the table of settings as Markdown")
    train = command("train", _train, "fine-tune the encoder on a Jigsaw-format CSV, as a new version")
    train.add_argument("corpus", type=Path, help="CSV with comment_text and the six labels, e.g. the challenge's train.csv")
    train.add_argument("--validate", type=Path, help="CSV to judge it on; without it, a tenth of the corpus is held out")
    train.add_argument("--epochs", type=_at_least_one, help="passes over the corpus")
    train.add_argument("--publish", action="store_true", help="put it in service if it is not worse than the live version")
    train.add_argument("--project", type=_project, default=BASE_PROJECT, help=PROJECT_HELP)
    evaluate = command("evaluate", _evaluate, "measure the live version on a Jigsaw-format CSV")
    evaluate.add_argument("corpus", type=Path, help="CSV with comment_text and the six labels")
    evaluate.add_argument(
        "--labels", type=Path, help="CSV with the labels by id, e.g. test_labels.csv to the challenge's test.csv"
    )
    evaluate.add_argument("--project", type=_project, default=BASE_PROJECT, help=PROJECT_HELP)
    predict = command(
        "predict", _predict, "write the live version's probabilities for a CSV, in the challenge's submission format"
    )
    predict.add_argument("comments", type=Path, help="CSV with comment_text, and id if it has one")
    predict.add_argument("-o", "--output", type=Path, required=True, help="CSV to write: id and six probabilities")
    predict.add_argument("--project", type=_project, default=BASE_PROJECT, help=PROJECT_HELP)
    versions = command("versions", _versions, "list the versions of every project")
    versions.add_argument("--project", type=_project, help="only this Label Studio project")
    rollback = command("rollback", _rollback, "put an older version in service; every process swaps to it by itself")
    rollback.add_argument("version", type=version, help="e.g. v3, or base-v1; v0 is what the project started from")
    rollback.add_argument("--project", type=_project, default=BASE_PROJECT, help=PROJECT_HELP)
    prune = command("prune", _prune, "remove all but the newest versions, the live one and the best")
    prune.add_argument("--keep", type=_at_least_one, help="how many of the newest are kept (KEEP_VERSIONS)")
    prune.add_argument("--project", type=_project, help="only this Label Studio project")
    starter = command("starter", _starter, "make the starter from a Jigsaw-format CSV")
    starter.add_argument("corpus", type=Path, help="CSV with comment_text and the six labels")
    starter.add_argument("--validate", type=Path, help="CSV to measure it on; without it, a tenth of the corpus is held out")
    secure = command("secure-webhook", _secure_webhook, "have Label Studio's webhook carry WEBHOOK_SECRET")
    secure.add_argument("--project", type=_project, required=True, help="the Label Studio project")
    secure.add_argument("--url", help="the backend's URL as Label Studio has it, where the project has several backends")
    forget = command("forget", _forget, "remove a task's comment from everything that is kept here")
    forget.add_argument("--project", type=_project, required=True, help="the Label Studio project")
    forget.add_argument("--task", type=_at_least_one, required=True, help="the task's number in Label Studio")
    return parser


def version(text: str) -> tuple[int, bool]:
    """Return the number in `base-v3`, `v3` or `3`, and whether the base was named."""
    number = text.removeprefix("base-").removeprefix("v")
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no version: give one like v3, or v0 for what the project started from")
    return int(number), text.startswith("base-")


def _project(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no project: give its number, as in Label Studio's address bar")
    return int(text)


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def _up(parsed: argparse.Namespace, settings: Settings) -> int:
    from toxicity.stack import run_stack

    return run_stack(settings)


def _settings(parsed: argparse.Namespace, settings: Settings) -> int:
    print(settings_table())
    return 0


def _train(parsed: argparse.Namespace, settings: Settings) -> int:
    split = split_corpus(parsed.corpus, parsed.validate)  # read before TensorFlow is: errors come at once
    print(f"{len(split.training)} comments to train on, {len(split.held_out)} held out, {split.left_out} left out (not scored)")
    from toxicity.corpus_training import train_on_corpus
    from toxicity.fine_tuning import CORPUS_PLAN

    plan = CORPUS_PLAN if parsed.epochs is None else replace(CORPUS_PLAN, epochs=parsed.epochs)
    with training_bar(plan.epochs * len(split.training)) as report:
        manifest = train_on_corpus(settings, split, parsed.project, publish=parsed.publish, plan=plan, report=report)
    print(f"\n{manifest.name}, measured on {manifest.verdict.comments} comments ({manifest.verdict.judged_on})")
    print_measures(manifest.measures, manifest.thresholds)
    versions = ProjectVersions(settings.models_dir(), parsed.project)
    reasons = "; ".join(manifest.verdict.reasons)
    if manifest.verdict.accepted:
        print(f"{manifest.name} is in service ({reasons}); every process swaps to it by itself")
        return 0
    print(f"{manifest.name} is kept and not in service ({reasons}); {versions.name(versions.current())} is")
    print(f"To put it in service all the same: .venv/bin/python -m toxicity rollback {manifest.name} --project {parsed.project}")
    return 1 if parsed.publish else 0


def _evaluate(parsed: argparse.Namespace, settings: Settings) -> int:
    corpus = read_corpus(parsed.corpus, parsed.labels)
    from toxicity.corpus_training import evaluate_on_corpus

    live, measures = evaluate_on_corpus(settings, corpus.comments, parsed.project)
    print(f"{live.name} on {len(corpus.comments)} comments of {parsed.corpus}, {corpus.left_out} left out (not scored)")
    print_measures(measures, live.thresholds)
    return 0


def _predict(parsed: argparse.Namespace, settings: Settings) -> int:
    ids, texts = read_comments(parsed.comments)  # before TensorFlow is loaded, and the output: errors come at once
    require_writable(parsed.output)
    if parsed.output.exists() and parsed.output.samefile(parsed.comments):
        raise ValueError(f"{parsed.output} is what is read: give another name for what is written.")
    from toxicity.corpus_training import predict_corpus

    with tqdm(unit=" comments") as bar:

        def report(done: int, of: int) -> None:
            bar.total = of
            bar.update(done)

        live = predict_corpus(settings, ids, texts, parsed.output, parsed.project, report)
    print(f"{parsed.output} written by {live.name}")
    return 0


def _versions(parsed: argparse.Namespace, settings: Settings) -> int:
    projects = projects_with_versions(settings.models_dir()) if parsed.project is None else [parsed.project]
    if not projects:
        print("No project has trained yet: v0, the starter, answers for every one.")
        return 0
    print(
        f"{'project':>7}  {'version':9} {'parent':9} {'made':25} {'learned':>7} {'AUC':>6} {'loss':>6} {'MB':>5}  {'sha256':12}",
        end="",
    )
    print("  verdict")
    code = 0
    for project in projects:
        versions = ProjectVersions(settings.models_dir(), project)
        whose = "base" if project == BASE_PROJECT else str(project)
        current: int | None = None
        try:
            current = versions.current()
            beginning = versions.name(STARTER_NUMBER)
        except VersionError as error:  # the others are listed all the same
            print(f"{whose:>7}  DAMAGED: {error}")
            beginning, code = "v0", 1
        for number in (STARTER_NUMBER, *versions.numbers()):
            live = "  <- live" if number == current else ""
            name = versions.name(number) if number else beginning
            print(f"{whose:>7}  {name:9} {_described(versions, number)}{live}")
    return code


def _described(versions: ProjectVersions, number: int) -> str:
    if number == STARTER_NUMBER:
        return "where it starts from"
    try:
        manifest = versions.manifest(number)
    except VersionError as error:
        return f"DAMAGED: {error}"
    auc, loss = (shown(manifest.measures.get(name), 6) for name in ("mean_roc_auc", "log_loss"))
    megabytes, checksum = versions.size(number) / 1e6, manifest.files["weights.safetensors"][:12]
    verdict = "accepted" if manifest.verdict.accepted else "REJECTED"
    judged = (
        f"{verdict} on {manifest.verdict.comments} comments ({manifest.verdict.judged_on}): {'; '.join(manifest.verdict.reasons)}"
    )
    learned = manifest.training.get("new_examples", 0)
    return f"{manifest.parent_name:9} {manifest.created_at:25} {learned:7} {auc} {loss} {megabytes:5.1f}  {checksum}  {judged}"


def _rollback(parsed: argparse.Namespace, settings: Settings) -> int:
    versions = ProjectVersions(settings.models_dir(), parsed.project)
    whose = "the base" if parsed.project == BASE_PROJECT else f"project {parsed.project}"
    known = projects_with_versions(settings.models_dir())
    if parsed.project not in known:
        others = ", ".join("the base" if project == BASE_PROJECT else f"project {project}" for project in known)
        there = f"there are those of {others}; say which by --project" if known else "there are none yet"
        raise VersionError(f"{whose} has no versions in {settings.models_dir()}; {there}.")
    number, named_base = parsed.version
    if named_base and parsed.project != BASE_PROJECT:
        beginning = versions.name(STARTER_NUMBER)
        if beginning != f"base-v{number}":
            raise VersionError(f"{whose} starts from {beginning}, not from base-v{number}: v0 goes back to the former.")
        number = STARTER_NUMBER
    versions.make_current(number)
    print(f"{whose}: {versions.name(number)} is in service; every process swaps to it by itself")
    if parsed.project != BASE_PROJECT:
        print("The next training run starts from it and learns every annotation since. Correct or delete wrong ones before that.")
    return 0


def _prune(parsed: argparse.Namespace, settings: Settings) -> int:
    projects = projects_with_versions(settings.models_dir()) if parsed.project is None else [parsed.project]
    if not set(projects) & set(projects_with_versions(settings.models_dir())):
        print(f"There are no versions in {settings.models_dir()} to remove.")
        return 0
    for project in projects:
        versions = ProjectVersions(settings.models_dir(), project)
        names = {number: versions.name(number) for number in versions.numbers()}
        removed = [names[number] for number in versions.prune(parsed.keep or settings.keep_versions)]
        kept = [versions.name(number) for number in versions.numbers()]
        whose = "the base" if project == BASE_PROJECT else f"project {project}"
        print(f"{whose}: removed {', '.join(removed) or 'nothing'}; kept {', '.join(kept) or 'nothing'}")
    return 0


def _secure_webhook(parsed: argparse.Namespace, settings: Settings) -> int:
    if not (settings.webhook_secret and settings.label_studio_url):
        raise ValueError(
            "Set WEBHOOK_SECRET (with BASIC_AUTH_USER and BASIC_AUTH_PASS), LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY."
        )
    from toxicity.label_studio_api import LabelStudioApiError, secure_webhook

    try:
        url = secure_webhook(settings, parsed.project, parsed.url)
    except LabelStudioApiError as error:
        raise ValueError(str(error)) from error
    print(f"project {parsed.project}: the webhook to {url} carries the secret")
    return 0


def _forget(parsed: argparse.Namespace, settings: Settings) -> int:
    import redis

    from toxicity.forgetting import forget_task
    from toxicity.redis_connection import connect_for_draining

    try:
        done = forget_task(connect_for_draining(settings), settings.data_dir / SPOOL, parsed.project, parsed.task)
    except redis.RedisError as error:
        raise ValueError(
            f"Redis does not answer ({type(error).__name__}): nothing is forgotten yet. Start it (make up), ask again."
        ) from error
    print(f"task {parsed.task} of project {parsed.project}: {'; '.join(done)}")
    print("Label Studio keeps its own copy. Versions that learned from it hold no comment; to be rid of them too, see README.")
    return 0


def _starter(parsed: argparse.Namespace, settings: Settings) -> int:
    split = split_corpus(parsed.corpus, parsed.validate)
    from toxicity.classifier import build_classifier
    from toxicity.devices import training_devices
    from toxicity.fine_tuning import CORPUS_PLAN
    from toxicity.starter import starter_file
    from toxicity.starter_making import make_starter

    classifier = build_classifier(EMBEDDED, settings.data_dir, settings.max_length, training_devices())
    with training_bar(CORPUS_PLAN.epochs * len(split.training)) as report:
        decision, measures = make_starter(classifier, split, starter_file(), report)
    print_measures(measures, decision.thresholds)
    print(f"{starter_file()} written, {starter_file().stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
