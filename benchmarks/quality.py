"""How well the classifier learns from a corpus, and what each choice in its training is worth.

What is shipped is trained on the whole training file and measured on the validation file. Then each variant of the training is
cross-validated within the training file, over several folds and seeds, so that nothing is chosen on the validation file. A
row of the table is printed as soon as it is known; on two cores it takes ten minutes to the first and an hour or two to the last.

    python -m benchmarks.quality train.csv validation.csv --variants "as shipped, focal loss" --folds 2 --seeds 1
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from toxicity.classifier import build_classifier
from toxicity.comments import LabelledComment
from toxicity.corpus import read_corpus
from toxicity.devices import training_devices
from toxicity.evaluation import log_losses, roc_aucs, targets_of
from toxicity.fine_tuning import (
    CORPUS_PLAN,
    Progress,
    Recipe,
    TrainingPlan,
    corpus_recipe,
    fine_tune,
    positive_weights,
    rate_factor,
    weighted_cross_entropy,
)
from toxicity.fingerprint import HEAD
from toxicity.hold_out import place, stratum
from toxicity.labels import LABELS
from toxicity.settings import EMBEDDED, Settings, settings_from_environment
from toxicity.tokenizer import TAIL_SHARE

SHIPPED = "as shipped"
ENCODER_LAYERS = 6


@dataclass(frozen=True)
class Variant:
    """One way to train: what differs from what is shipped."""

    plan: TrainingPlan = CORPUS_PLAN
    recipe: Callable[[Sequence[float]], Recipe] = corpus_recipe  # given the positives' weights
    max_length: int = 128
    tail_share: float = TAIL_SHARE


@dataclass(frozen=True)
class Result:
    """A variant's ROC AUC by label, and its mean log loss, on comments that it did not learn."""

    aucs: dict[str, float]
    log_loss: float


def focal_recipe(weights: Sequence[float]) -> Recipe:
    """Lin et al. 2017 with gamma 1: what is already right counts less."""

    def loss(targets: Any, probabilities: Any) -> Any:
        right = targets * probabilities + (1 - targets) * (1 - probabilities)
        return weighted_cross_entropy(targets, probabilities, weights) * (1 - right)

    return Recipe(loss=loss)


def decayed_rate_factor(variable: str) -> float:
    """Layer-wise rates: each layer further from the head learns 0.9 times as fast."""
    if variable.startswith(HEAD):
        return rate_factor(variable)
    layer = next((n for n in range(ENCODER_LAYERS) if f"layer/{n}/" in variable), -1)
    return round(0.9 ** (ENCODER_LAYERS - 1 - layer), 6)


VARIANTS = {
    SHIPPED: Variant(),
    "learning rate 5e-5": Variant(plan=replace(CORPUS_PLAN, learning_rate=5e-5)),
    "learning rate 2e-4": Variant(plan=replace(CORPUS_PLAN, learning_rate=2e-4)),
    "batches of 16": Variant(plan=replace(CORPUS_PLAN, batch_size=16)),
    "beginning of the comment only": Variant(tail_share=0.0),
    "256 word pieces": Variant(max_length=256),
    "positives not weighted": Variant(recipe=lambda weights: Recipe()),
    "focal loss": Variant(recipe=focal_recipe),
    "layer-wise rates": Variant(recipe=lambda weights: replace(corpus_recipe(weights), rate_factor=decayed_rate_factor)),
}


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("validate", type=Path)
    parser.add_argument(
        "--variants", default="all", help=f"cross-validate these, comma-separated ('' for none): {', '.join(VARIANTS)}"
    )
    parser.add_argument("--folds", type=int, default=2, help="how many of the four folds")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds for each fold")
    given = parser.parse_args()
    settings = settings_from_environment()
    train, validation = read_corpus(given.train).comments, read_corpus(given.validate).comments
    names = list(VARIANTS) if given.variants == "all" else [name.strip() for name in given.variants.split(",") if name.strip()]
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        parser.error(f"unknown variant {unknown[0]!r}: there are {', '.join(VARIANTS)}")
    print(f"\n{SHIPPED}, trained on all of {given.train.name}, measured on {given.validate.name}\n{header()}", flush=True)
    result = trained(settings, VARIANTS[SHIPPED], train, validation, seed=CORPUS_PLAN.seed)
    print(row(SHIPPED, [result]), flush=True)
    if not names:
        return
    print(f"\ncross-validation within {given.train.name}: {given.folds} of 4 folds, {given.seeds} seeds\n{header()}", flush=True)
    for name in names:
        results = [
            trained(settings, VARIANTS[name], *fold(train, which), seed)
            for which in range(given.folds)
            for seed in range(given.seeds)
        ]
        print(row(name, results), flush=True)


def fold(comments: Sequence[LabelledComment], which: int) -> tuple[list[LabelledComment], list[LabelledComment]]:
    """Return three quarters to train on and one to measure on, stratified by each comment's rarest label."""
    strata: dict[str, list[int]] = {}
    for index in sorted(range(len(comments)), key=lambda index: place(0, index)):
        strata.setdefault(stratum(comments[index].targets), []).append(index)
    left_out = {index for rows in strata.values() for index in rows[which::4]}
    return (
        [comment for index, comment in enumerate(comments) if index not in left_out],
        [comment for index, comment in enumerate(comments) if index in left_out],
    )


def trained(
    settings: Settings, variant: Variant, train: Sequence[LabelledComment], others: Sequence[LabelledComment], seed: int
) -> Result:
    """Train a variant from a fresh head and measure it on other comments."""
    classifier = build_classifier(EMBEDDED, settings.data_dir, variant.max_length, training_devices())
    classifier.tokenizer.tail_share = variant.tail_share
    plan = replace(variant.plan, seed=seed)
    passes = plan.epochs * len(train)
    with tqdm(total=passes, unit=" comments", mininterval=5, leave=False) as bar:

        def report(progress: Progress) -> None:
            bar.update(round(passes * progress.step / progress.steps) - bar.n)

        fine_tune(classifier, train, plan, report, recipe=variant.recipe(positive_weights(train)))
    answers, targets = classifier.predict([comment.text for comment in others]), targets_of(others)
    return Result(roc_aucs(targets, answers), float(np.nanmean(log_losses(targets, answers))))


def header() -> str:
    """Return the table's head."""
    return f"{'':30} {'mean AUC':>16} {' '.join(f'{label:>13}' for label in LABELS)} {'log loss':>9}"


def row(name: str, results: Sequence[Result]) -> str:
    """Return a line of the table: means over the runs, and the mean AUC's standard deviation."""
    means = [float(np.mean(list(result.aucs.values()))) for result in results]
    labels = " ".join(f"{np.mean([result.aucs.get(label, np.nan) for result in results]):13.4f}" for label in LABELS)
    spread = f" ± {np.std(means, ddof=1):.4f}" if len(means) > 1 else ""
    return f"{name:30} {f'{np.mean(means):.4f}{spread}':>16} {labels} {np.mean([result.log_loss for result in results]):9.4f}"


if __name__ == "__main__":
    main()
