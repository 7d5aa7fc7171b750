"""A project's life in one go: a corpus as a stream of annotations, learned batch by batch by the product's own training runs.

Prints one table and draws the learning curve: batches in random order against least-confident-first, beside one training on
everything at once. Every run goes through worker/training.py on a real Redis, hold-out, verdict and rejections included; only
Label Studio and the queue are left out. It starts from a fresh head, because the starter has seen such comments.

    python -m benchmarks.stream train.csv validation.csv --batch 300
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import redis

from toxicity.classifier import build_classifier
from toxicity.comments import LabelledComment
from toxicity.corpus import read_corpus
from toxicity.devices import training_devices
from toxicity.encoder import embedded_saved_model
from toxicity.evaluation import roc_aucs, targets_of
from toxicity.examples import ExampleStore
from toxicity.fine_tuning import CORPUS_PLAN, corpus_recipe, fine_tune, positive_weights
from toxicity.label_studio import Annotation, Changes
from toxicity.labels import confidence
from toxicity.loading import load_newest
from toxicity.predicting import FloatArray
from toxicity.redis_connection import redis_server_command, socket_path
from toxicity.settings import Settings, settings_from_environment
from toxicity.versions import LoadedVersion, ProjectVersions
from worker.training import learn_and_publish

mpl.use("agg")
from matplotlib import pyplot

RANDOM, ACTIVE = "random order", "least confident first"
CANDIDATES = 3  # for each comment of a batch so many are looked at, to find the least confident
FIRST_BATCHES = 2


@dataclass
class Curve:
    """What one order gave: after each batch the comments annotated, comments trained (all passes), and the mean ROC AUC."""

    annotated: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    auc: list[float] = field(default_factory=list)
    first_batches: list[float] = field(default_factory=list)  # on the held-out part of what came first
    rejected: int = 0
    final: float = float("nan")  # after the last batch, on all comments that were not in the stream


@dataclass(frozen=True)
class Stream:
    """The comments that come, those that everything is measured on, and how many come at a time."""

    comments: list[LabelledComment]
    validation: list[LabelledComment]  # after each batch
    others: list[LabelledComment]  # at the end: more of them, so that rare labels weigh by more than a few positives
    batch: int
    seed: int


def main() -> None:
    """Run the simulation and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("validate", type=Path)
    parser.add_argument("--batch", type=int, default=300, help="annotations between two training runs")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many comments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random-only", action="store_true", help="leave out least-confident-first, which takes as long again")
    parser.add_argument("--output", type=Path, default=Path("stream.png"), help="where the learning curve is drawn")
    given = parser.parse_args()
    comments = read_corpus(given.train).comments
    limit, validation = given.limit or len(comments), read_corpus(given.validate).comments
    stream = Stream(comments[:limit], validation, [*validation, *comments[limit:]], given.batch, given.seed)
    settings = settings_from_environment()
    encoder = embedded_saved_model(settings.data_dir)
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as connection:
        curves = {}
        for project, order in enumerate((RANDOM,) if given.random_only else (RANDOM, ACTIVE), 1):
            its = replace(settings, data_dir=Path(folder) / str(project), encoder=str(encoder))
            curves[order] = simulate(its, ExampleStore(connection), project, stream, order)
        at_once = train_at_once(replace(settings, encoder=str(encoder)), stream)
    print_table(stream, curves, at_once)
    draw(curves, at_once, given.output)
    print(f"\nlearning curve: {given.output}")


@contextmanager
def redis_server(folder: Path) -> Iterator[redis.Redis]:
    """Run a Redis of our own."""
    server = subprocess.Popen(redis_server_command(folder), stdout=subprocess.DEVNULL)
    connection = redis.Redis(unix_socket_path=str(socket_path(folder)))
    try:
        while server.poll() is None:
            try:
                connection.ping()
                break
            except redis.RedisError:
                time.sleep(0.1)
        else:
            raise RuntimeError(f"Redis ended with {server.returncode} before it answered; {folder} may be full or not writable.")
        yield connection
    finally:
        server.terminate()
        server.wait()


def simulate(settings: Settings, store: ExampleStore, project: int, stream: Stream, order: str) -> Curve:
    """Annotate batch by batch as the corpus' annotators did, and train after each."""
    versions = ProjectVersions(settings.models_dir(), project)
    waiting = np.random.default_rng(stream.seed).permutation(len(stream.comments)).tolist()
    curve, first, live = Curve(), list[int](), None
    while waiting:
        batch = waiting[: stream.batch]
        if order == ACTIVE and live is not None:
            batch = least_confident(live, stream, waiting[: CANDIDATES * stream.batch])
        waiting = [task for task in waiting if task not in set(batch)]
        annotate(store, project, stream, batch)
        outcome = learn_and_publish(settings, store, project)
        if "examples" not in outcome:  # all of the batch is held out
            continue
        newest = versions.manifest(max(versions.numbers()))
        live = load_newest(settings, versions)
        first += batch if len(curve.auc) < FIRST_BATCHES else []
        sides = store.sides(project)
        held_out = [stream.comments[task] for task in first if sides[task]]
        curve.annotated.append(len(stream.comments) - len(waiting))
        curve.trained.append((curve.trained or [0])[-1] + newest.training["examples"] * newest.training["epochs"])
        curve.auc.append(mean_auc(live.classifier.predict(texts(stream.validation)), stream.validation))
        curve.first_batches.append(mean_auc(live.classifier.predict(texts(held_out)), held_out))
        curve.rejected += "rejected" in outcome
        told = f"{newest.name}, {newest.training['epochs']} epochs, {'; '.join(newest.verdict.reasons)}"
        print(
            f"{order:22} {curve.annotated[-1]:6} annotated, AUC {curve.auc[-1]:.4f}, first {curve.first_batches[-1]:.4f}, {told}",
            flush=True,
        )
    if live is not None:
        curve.final = mean_auc(live.classifier.predict(texts(stream.others)), stream.others)
    return curve


def annotate(store: ExampleStore, project: int, stream: Stream, tasks: Sequence[int]) -> None:
    """Record the corpus' own labels as annotations."""
    comments = [(task, stream.comments[task]) for task in tasks]
    annotations = tuple(Annotation(task, task, "2026-01-01", comment.text, comment.targets) for task, comment in comments)
    store.apply(Changes(project, annotations=annotations))


def least_confident(live: LoadedVersion, stream: Stream, candidates: Sequence[int]) -> list[int]:
    """Return those of the candidates that Label Studio's uncertainty sampling would serve first."""
    answers = live.predict([stream.comments[task].text for task in candidates]).tolist()
    scores = [confidence(row, live.thresholds) for row in answers]
    return [candidates[index] for index in np.argsort(scores, kind="stable")[: stream.batch]]


def train_at_once(settings: Settings, stream: Stream) -> Curve:
    """Train once on everything, as `python -m toxicity train` does."""
    classifier = build_classifier(settings.encoder, settings.data_dir, settings.max_length, training_devices())
    trained = fine_tune(classifier, stream.comments, CORPUS_PLAN, recipe=corpus_recipe(positive_weights(stream.comments)))
    auc, final = (mean_auc(classifier.predict(texts(each)), each) for each in (stream.validation, stream.others))
    return Curve([len(stream.comments)], [len(stream.comments) * trained.epochs], [auc], [float("nan")], final=final)


def texts(comments: Sequence[LabelledComment]) -> list[str]:
    """Return the comments' texts."""
    return [comment.text for comment in comments]


def mean_auc(probabilities: FloatArray, comments: Sequence[LabelledComment]) -> float:
    """Return the challenge's measure over the labels that have both a positive and a negative."""
    return float(np.mean(list(roc_aucs(targets_of(comments), probabilities).values())))


def print_table(stream: Stream, curves: dict[str, Curve], at_once: Curve) -> None:
    """Print what the stream reached, beside one training on everything and beside retraining on everything after each batch."""
    epochs = CORPUS_PLAN.epochs
    print(f"\n{len(stream.comments)} comments in batches of {stream.batch}, measured on {len(stream.others)} others\n")
    print(f"{'':30} {'AUC':>7} {'trained':>9} {'of retraining':>14} {'first':>7} {'last':>7} {'rejected':>9}")
    for order, curve in curves.items():
        retraining = sum(epochs * annotated for annotated in curve.annotated)
        first, last = curve.first_batches[:FIRST_BATCHES][-1], curve.first_batches[-1]
        print(
            f"{order:30} {curve.final:7.4f} {curve.trained[-1]:9} {curve.trained[-1] / retraining:14.1%} "
            f"{first:7.4f} {last:7.4f} {curve.rejected:6} of {len(curve.auc)}"
        )
    print(f"{'everything at once':30} {at_once.final:7.4f} {at_once.trained[-1]:9}")
    print("\nAUC: mean ROC AUC after the whole stream, on all comments that were not in it. trained: comments times passes.")
    print("of retraining: of what training anew on everything after each batch would have trained.")
    print(f"first, last: mean ROC AUC on the held-out part of the first {FIRST_BATCHES} batches, just after them and at the end.")
    goal = max(curves[RANDOM].auc)
    for order, curve in curves.items():
        reached = next((n for n, auc in zip(curve.annotated, curve.auc, strict=True) if auc >= goal - 0.005), None)
        print(f"{order}: within 0.005 of the best of the random order after {reached} annotations")


def draw(curves: dict[str, Curve], at_once: Curve, output: Path) -> None:
    """Draw the learning curves as a PNG."""
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for order, curve in curves.items():
        axes.plot(curve.annotated, curve.auc, marker="o", label=order)
    axes.axhline(at_once.auc[-1], color="grey", linestyle="--", label="everything at once")
    axes.set_xlabel("comments annotated")
    axes.set_ylabel("mean ROC AUC on other comments")
    axes.legend()
    figure.tight_layout()
    figure.savefig(output, dpi=120)


if __name__ == "__main__":
    main()
