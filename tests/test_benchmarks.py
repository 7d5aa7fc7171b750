"""That the measurements run, and measure what they say; what they find is for people to read."""

import csv
from pathlib import Path

import pytest

from benchmarks import quality, report, stream
from toxicity.comments import LabelledComment
from toxicity.corpus import anchors_file, read_corpus
from toxicity.fine_tuning import CORPUS_PLAN
from toxicity.hold_out import stratum
from toxicity.labels import LABELS

pytestmark = [pytest.mark.tensorflow, pytest.mark.processes]

ROWS = 40


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    comments = sorted(read_corpus(anchors_file()).comments, key=lambda comment: sum(map(bool, comment.targets)) == 0)
    path = tmp_path / "train.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("comment_text", *LABELS))
        writer.writerows((comment.text, *(int(target or 0) for target in comment.targets)) for comment in every_other(comments))
    return path


def every_other(comments: list[LabelledComment]) -> list[LabelledComment]:
    return comments[:: max(1, len(comments) // ROWS)][:ROWS]


@pytest.fixture(autouse=True)
def encoder_made_once(shared_data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(shared_data_dir))


def test_folds_part_the_comments_and_each_has_its_share_of_every_kind() -> None:
    comments = read_corpus(anchors_file()).comments
    folds = [quality.fold(comments, which) for which in range(4)]
    for train, others in folds:
        assert sorted(comment.text for comment in train + others) == sorted(comment.text for comment in comments)
        for kind in {stratum(comment.targets) for comment in comments}:
            count = sum(stratum(comment.targets) == kind for comment in comments)
            assert sum(stratum(comment.targets) == kind for comment in others) == pytest.approx(count / 4, abs=1)
    texts = [comment.text for _, others in folds for comment in others]
    assert sorted(texts) == sorted(comment.text for comment in comments)


def test_a_row_of_the_table_has_means_over_runs_and_their_spread() -> None:
    results = [quality.Result(dict.fromkeys(LABELS, auc), 0.1) for auc in (0.9, 0.92)]
    assert quality.row("two seeds", results).split() == ["two", "seeds", "0.9100", "±", "0.0141", *["0.9100"] * 6, "0.1000"]


def test_quality_trains_every_variant_and_prints_its_row(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [quality.SHIPPED, "focal loss", "layer-wise rates"]
    monkeypatch.setattr("sys.argv", ["quality", str(corpus), str(corpus), "--variants", ",".join(names), "--folds", "1"])
    quality.main()
    out = capsys.readouterr().out
    title = f"{quality.SHIPPED}, trained on all of train.csv, measured on train.csv"
    shown = [line.split("  ")[0] for line in out.splitlines() if line.startswith(tuple(names))]
    assert shown == [title, quality.SHIPPED, *names]


def test_stream_learns_batch_by_batch_and_counts_what_it_trains(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = tmp_path / "curve.png"
    monkeypatch.setattr("sys.argv", ["stream", str(corpus), str(corpus), "--batch", "20", "--output", str(drawing)])
    stream.main()
    out = capsys.readouterr().out
    assert out.count("20 annotated") == out.count("40 annotated") == 2
    at_once = next(line for line in out.splitlines() if line.startswith("everything at once"))
    assert str(ROWS * CORPUS_PLAN.epochs) in at_once.split()
    assert drawing.read_bytes().startswith(b"\x89PNG")


def test_a_line_of_the_benchmark_reaches_its_goal_by_its_median(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = [
        report.Line("bulk", (3.0, 4.5, 5.0), 4.0, at_least=True),
        report.Line("single: median time", (0.6, 0.8, 0.9), 0.7, at_least=False),
        report.Line("single: memory", (1.2,), None, at_least=False),
    ]
    report.print_table(lines)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("bulk", "single"))]
    assert rows[0].split() == ["bulk", "4.500", "3.000", "-", "5.000", ">=", "4"]
    assert rows[1].split()[-2:] == ["NOT", "REACHED"]
    assert rows[2].split() == ["single:", "memory", "1.200"]
    report.draw(lines, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
