"""How fast it is beside a peer: the same encoder, comments and processors, both in one run, one after the other in turns.

Prints a table of ratios (the median of several rounds, with their spread), writes it as JSON and draws one picture. Absolute
times are of the machine that it ran on, and are not shown.

    python -m benchmarks.bench train.csv validation.csv --peers DIR --peer-python .venv-peer/bin/python [--quick]
"""

import argparse
import csv
import itertools
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import redis

from benchmarks import servers
from benchmarks.load import PROJECT, Observed, bulk_rate, clients, concurrent_rate, one_after_another, post, until
from benchmarks.report import Line, draw, print_table, write_json
from toxicity.bert import embedded_model_dir
from toxicity.classifier import build_classifier
from toxicity.comments import LabelledComment
from toxicity.corpus import read_corpus
from toxicity.devices import has_bfloat16, training_devices
from toxicity.evaluation import roc_aucs, targets_of
from toxicity.fine_tuning import CORPUS_PLAN, corpus_recipe, fine_tune, positive_weights
from toxicity.labels import LABELS
from toxicity.serving import ServingClassifier
from toxicity.settings import EMBEDDED, Settings
from toxicity.starter import apply_starter, starter_file
from toxicity.training_queue import TrainingQueue
from toxicity.versions import ProjectVersions

CLIENTS = 16
ENOUGH_STEPS = 10


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    bulk: int
    singles: int
    seconds: float  # of each round of concurrent clients
    trained: int
    epochs: int  # of the run beside which predictions are measured
    compared: int  # comments, with float32


FULL = Size(rounds=5, bulk=3000, singles=150, seconds=10.0, trained=480, epochs=30, compared=10_000)
QUICK = Size(rounds=3, bulk=200, singles=30, seconds=2.0, trained=64, epochs=5, compared=400)


@dataclass(frozen=True)
class Bench:
    """What the measurements share."""

    train: list[LabelledComment]
    validation: list[LabelledComment]
    peers: Path
    peer_python: Path
    size: Size
    folder: Path

    def texts(self, count: int, start: int = 0) -> list[str]:
        """Return so many comments' texts, from one of them on."""
        return [self.train[number % len(self.train)].text for number in range(start, start + count)]


def main() -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("validate", type=Path)
    parser.add_argument("--peers", type=Path, required=True, help="folder with hf_backend.py and hf_train.py")
    parser.add_argument("--peer-python", type=Path, required=True, help="the Python that has what they need")
    parser.add_argument("--quick", action="store_true", help="fewer comments and rounds: a few minutes")
    parser.add_argument("--output", type=Path, default=Path("bench"), help="NAME.json and NAME.png are written")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            read_corpus(given.train).comments,
            read_corpus(given.validate).comments,
            given.peers,
            given.peer_python,
            QUICK if given.quick else FULL,
            Path(folder),
        )
        lines = [*start(bench), *serving(bench), *precision(bench), *while_training(bench), *training(bench)]
    print_table(lines)
    write_json(lines, given.output.with_suffix(".json"))
    draw(lines, given.output.with_suffix(".png"))
    print(f"\n{given.output}.json and {given.output}.png written")


def rounds(bench: Bench, name: str, measure: Callable[[], float]) -> tuple[float, ...]:
    """Return one ratio for each round, and say so meanwhile."""
    found = []
    for number in range(bench.size.rounds):
        found.append(measure())
        print(f"{name}, round {number + 1} of {bench.size.rounds}: {found[-1]:.2f}", flush=True)
    return tuple(found)


def start(bench: Bench) -> list[Line]:
    """Measure what `make up` runs, from its start to the first answer, over a data folder that is new the first time only."""
    seconds = []
    for _ in range(bench.size.rounds):
        started = time.perf_counter()
        with servers.everything(bench.folder / "start", {}):
            seconds.append(time.perf_counter() - started)
    ratios = tuple(each / 10 for each in seconds)
    return [
        Line("start over a new data folder: to the first answer, to 10 s", ratios[:1], 1.0, at_least=False),
        Line("start: to the first answer, to 10 s", ratios[1:], 1.0, at_least=False),
    ]


def serving(bench: Bench) -> list[Line]:
    """Measure bulk, single and concurrent requests of both servers in turns, and what they keep resident."""
    size = bench.size
    with ExitStack() as stack:
        url = stack.enter_context(servers.redis_of(bench.folder))
        we = stack.enter_context(servers.ours(bench.folder, url, {}))
        they = stack.enter_context(servers.peer(bench.folder, bench.peer_python, bench.peers))
        for server in (we, they):
            bulk_rate(server.port, bench.texts(200))  # both have seen every width before anything counts
        singles = bench.texts(size.singles)
        starts = itertools.count(step=size.bulk // 2)  # other comments in each round

        def bulk_ratio() -> float:
            texts = bench.texts(size.bulk, next(starts))
            return bulk_rate(we.port, texts) / bulk_rate(they.port, texts)

        bulk = rounds(bench, "bulk", bulk_ratio)
        both = [(one_after_another(we.port, singles), one_after_another(they.port, singles)) for _ in range(size.rounds)]
        concurrent = rounds(
            bench,
            "clients",
            lambda: (
                concurrent_rate(we.port, bench.texts(2000), CLIENTS, size.seconds)
                / concurrent_rate(they.port, bench.texts(2000), CLIENTS, size.seconds)
            ),
        )
        memory = we.resident_megabytes() / they.resident_megabytes()
    return [
        Line(f"bulk: comments/s of one request with {size.bulk}", bulk, 4.0, at_least=True),
        Line("single: median time", _ratios(both, 50), 0.7, at_least=False),
        Line("single: 99th percentile", _ratios(both, 99), 0.7, at_least=False),
        Line(f"{CLIENTS} clients: comments/s", concurrent, 3.0, at_least=True),
        Line("resident memory of the web process", (memory,), None, at_least=False),
    ]


def _ratios(both: Sequence[tuple[Observed, Observed]], percent: float) -> tuple[float, ...]:
    return tuple(ours.percentile(percent) / theirs.percentile(percent) for ours, theirs in both)


def precision(bench: Bench) -> list[Line]:
    """Measure what the numbers that we compute in change, and the tokenizer's share of a bulk prediction."""
    compared = bench.validation[: bench.size.compared]
    texts = [comment.text for comment in compared]
    networks = [ServingClassifier(128, bfloat16) for bfloat16 in (has_bfloat16(), False)]
    for network in networks:
        apply_starter(network, starter_file())
    answers, exact = (network.predict(texts) for network in networks)
    targets = targets_of(compared)
    auc, exact_auc = (float(np.mean(list(roc_aucs(targets, each).values()))) for each in (answers, exact))
    shares = []
    for _ in range(bench.size.rounds):
        served = ServingClassifier(128, has_bfloat16())  # its tokenizer has seen no word yet
        started = time.perf_counter()
        for text in texts:
            served.encode(text)
        tokenized = time.perf_counter() - started
        started = time.perf_counter()
        networks[0].predict(texts)
        shares.append(tokenized / (time.perf_counter() - started))
    return [
        Line("largest difference of a probability to float32's", (float(np.abs(answers - exact).max()),), 0.01, at_least=False),
        Line("difference of the mean AUC to float32's", (abs(auc - exact_auc),), 0.001, at_least=False),
        Line("tokenizer's share of a bulk prediction's time", tuple(shares), 0.05, at_least=False),
    ]


def while_training(bench: Bench) -> list[Line]:
    """Measure single predictions and webhooks while the worker trains on the same processors, and a swap under load."""
    singles = bench.texts(bench.size.singles)
    settings = {
        "TRAIN_AFTER": "1",
        "TRAIN_WAIT": "0",
        "SWAP_POLL": "0.2",
        "HOLD_OUT": "0",
        "TRAIN_EPOCHS": str(bench.size.epochs),
    }
    versions = ProjectVersions(bench.folder / "models", PROJECT)
    with ExitStack() as stack:
        url = stack.enter_context(servers.redis_of(bench.folder))
        we = stack.enter_context(servers.ours(bench.folder, url, settings))
        one_after_another(we.port, singles)
        idle = [one_after_another(we.port, singles) for _ in range(bench.size.rounds)]
        stack.enter_context(servers.worker(bench.folder, url, settings))
        hooks = [webhook_seconds(we.port, bench.train[number], number) for number in range(1, 65)]
        queue = TrainingQueue(stack.enter_context(redis.Redis.from_url(url)), Settings())
        until(lambda: _is_training(queue), 120, "training")
        training = [one_after_another(we.port, singles) for _ in range(bench.size.rounds)]
        hooks += [webhook_seconds(we.port, bench.train[number], number) for number in range(65, 80)]
        trained_throughout = _is_training(queue)
        until(lambda: bool(versions.accepted()), 600, "a version")
    if not trained_throughout:
        raise RuntimeError("The training run ended before the measurement beside it: give Size more epochs.")
    quiet = float(np.median([observed.percentile(99) for observed in idle]))
    return [
        Line(
            "while it trains: 99th percentile of single ones, to idle",
            tuple(observed.percentile(99) / quiet for observed in training),
            3.0,
            at_least=False,
        ),
        Line("while it trains: slowest webhook, to 100 ms", (max(hooks) / 0.1,), 1.0, at_least=False),
        *swap(bench, versions),
    ]


def _is_training(queue: TrainingQueue) -> bool:
    """Whether a run is between its first step and its last: building its graph is something else."""
    job = queue.current_run(PROJECT)
    return job is not None and job.get_meta().get("progress", {}).get("stage") == "training"


def webhook_seconds(port: int, comment: LabelledComment, number: int) -> float:
    """Return how long the answer to an annotation took."""
    chosen = [label for label, target in zip(LABELS, comment.targets, strict=True) if target]
    region = {"from_name": "toxicity", "to_name": "text", "type": "choices", "value": {"choices": chosen}}
    config = '<View><Text name="text" value="$text"/><Choices name="toxicity" toName="text" choice="multiple">'
    config += "".join(f'<Choice value="{label}"/>' for label in LABELS) + "</Choices></View>"
    body = {
        "action": "ANNOTATION_CREATED",
        "annotation": {"id": number, "result": [region], "updated_at": "2026-01-01T00:00:00Z", "was_cancelled": False},
        "task": {"id": number, "data": {"text": comment.text}, "project": PROJECT},
        "project": {"id": PROJECT, "label_config": config},
    }
    started = time.perf_counter()
    post(port, "/webhook", body)
    return time.perf_counter() - started


def swap(bench: Bench, versions: ProjectVersions) -> list[Line]:
    """Measure what clients notice of swaps between what a project started from and what it learned."""
    failures = mixed = 0
    pauses, memory = [], []
    with ExitStack() as stack:
        url = stack.enter_context(servers.redis_of(bench.folder))
        we = stack.enter_context(servers.ours(bench.folder, url, {"SWAP_POLL": "0.2"}))
        texts = bench.texts(2000)
        concurrent_rate(we.port, texts, CLIENTS, 2.0)
        before = we.resident_megabytes()
        for _ in range(bench.size.rounds):
            with clients(we.port, texts, CLIENTS, tasks=3) as observed:
                time.sleep(bench.size.seconds)
                steady = Observed(seconds=list(observed.seconds))
                versions.make_current(0 if versions.current() else versions.accepted()[-1])
                until(lambda: len(frozenset().union(*observed.versions)) > 1, 60, "a swap")  # waits in this round
                time.sleep(bench.size.seconds)
            failures += len(observed.failures)
            mixed += sum(len(version) != 1 for version in observed.versions)
            pauses.append(max(observed.seconds[len(steady.seconds) :]) / steady.percentile(99))
            memory.append(we.resident_megabytes() / before)
    return [
        Line("swap under load: failed requests", (float(failures),), 0.0, at_least=False),
        Line("swap under load: answers by two versions", (float(mixed),), 0.0, at_least=False),
        Line("swap under load: slowest request, to the 99th percentile", tuple(pauses), 2.0, at_least=False),
        Line("resident memory after a swap, to before", tuple(memory), 1.5, at_least=False),
    ]


def training(bench: Bench) -> list[Line]:
    """Measure one epoch over the same comments of both, in turns."""
    comments = bench.train[: bench.size.trained]
    train = write_corpus(bench.folder / "train.csv", comments)
    # It measures AUC at the end, for which every label has to have a positive and a negative.
    some = {label: [each for each in bench.train if each.targets[column]][:3] for column, label in enumerate(LABELS)}
    validate = write_corpus(bench.folder / "validate.csv", [*itertools.chain.from_iterable(some.values()), *comments[:20]])
    recipe = corpus_recipe(positive_weights(comments))
    classifier = build_classifier(EMBEDDED, bench.folder, 128, training_devices())

    plan = replace(CORPUS_PLAN, epochs=1, learning_rate=5e-5)

    def our_rates() -> tuple[float, float]:
        ends: list[float] = []
        started = time.perf_counter()
        fine_tune(classifier, comments, plan, lambda progress: ends.append(time.perf_counter()), recipe=recipe)
        # A run builds its graph in its first step, for seconds, whether it learns dozens or thousands.
        return len(comments) / (ends[-1] - started), (len(comments) - plan.batch_size) / (ends[-1] - ends[0])

    both = []
    for number in range(bench.size.rounds):
        theirs = peer_training_rate(bench, train, validate)
        both.append([ours / theirs for ours in our_rates()])
        print(f"training, round {number + 1} of {bench.size.rounds}: {both[-1][1]:.2f}", flush=True)
    whole, steady = (tuple(each) for each in zip(*both, strict=True))
    goal = 3.0 if len(comments) >= ENOUGH_STEPS * plan.batch_size else None  # in a few steps it is chance
    return [
        Line(f"fine-tuning: comments/s of a run over {len(comments)}", whole, goal, at_least=True),
        Line("fine-tuning: comments/s after the first step", steady, goal, at_least=True),
    ]


def write_corpus(path: Path, comments: Sequence[LabelledComment]) -> Path:
    """Write comments in the challenge's format."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "comment_text", *LABELS))
        writer.writerows(
            (number, each.text, *(int(target or 0) for target in each.targets)) for number, each in enumerate(comments)
        )
    return path


def peer_training_rate(bench: Bench, train: Path, validate: Path) -> float:
    """Return the comments a second that the peer's loop prints."""
    command = [str(bench.peer_python), str(bench.peers / "hf_train.py"), "--encoder", str(embedded_model_dir())]
    command += ["--train", str(train), "--validate", str(validate), "--epochs", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        out = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return float(out.split(" comments/s")[0].split()[-1])


if __name__ == "__main__":
    main()
