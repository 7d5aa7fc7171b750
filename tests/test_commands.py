"""The commands as a person types them: what they print, where, and with which exit code."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REJECTED, publish
from toxicity.__main__ import main
from toxicity.labels import LABELS
from toxicity.settings import Settings, settings_table
from toxicity.versions import BASE_PROJECT, ProjectVersions

Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[1]
HEADER = "project version parent made learned AUC loss MB sha256 verdict"
MADE = "2026-01-01T00:00:00+00:00"


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in Settings.__dataclass_fields__:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def versions(data_dir: Path) -> ProjectVersions:
    versions = ProjectVersions(data_dir / "models", 7)
    for number in (1, 2, 3):
        publish(versions, number)
    return versions


@pytest.fixture
def base(data_dir: Path) -> ProjectVersions:
    return ProjectVersions(data_dir / "models", BASE_PROJECT)


def printed(capsys: Capture) -> list[str]:
    """What a command wrote to stdout, each line's columns one space apart; nothing went to stderr."""
    out, err = capsys.readouterr()
    assert err == ""
    return [" ".join(line.split()) for line in out.splitlines()]


def row(versions: ProjectVersions, number: int) -> str:
    """The row of a version that publish() made."""
    manifest = versions.manifest(number)
    whose, decided = versions.project or "base", "accepted" if manifest.verdict.accepted else "REJECTED"
    known = f"{whose} {manifest.name} {manifest.parent_name} {MADE} 1 0.9000 0.1000 0.0"
    checksum = manifest.files["weights.safetensors"][:12]
    return f"{known} {checksum} {decided} on 40 comments (hold-out): {manifest.verdict.reasons[0]}"


def write_csv(path: Path, rude: int, clean: int, upside_down: bool = False) -> Path:
    """Write a corpus in which what is rude is told from what is not by its letters, and no text stands twice."""
    with path.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["id", "comment_text", *LABELS])
        for number in range(rude + clean):
            is_rude = (number < rude) is not upside_down
            own = path.stem[0] + "".join("bcdfghjklm"[int(digit)] for digit in str(number))
            text = f"{'zwz wzz' if number < rude else 'aea eaa'} {own}"
            writer.writerow([f"c{number}", text, int(is_rude), 0, 0, 0, int(is_rude), 0])
    return path


def test_a_damaged_pointer_is_told_and_the_other_projects_are_listed(
    capsys: Capture, versions: ProjectVersions, data_dir: Path
) -> None:
    another = ProjectVersions(data_dir / "models", 3)
    publish(another, 1)
    (another.root / "current").write_text("rubbish")
    assert main(["versions"]) == 1
    rows = printed(capsys)
    assert rows[1].startswith(f"3 DAMAGED: {another.root / 'current'} says 'rubbish', not two numbers: remove it")
    assert rows[2:4] == ["3 v0 where it starts from", row(another, 1)]
    assert rows[-1] == f"{row(versions, 3)} <- live"


@pytest.mark.parametrize("project", ["-5", "seven", "1.5", ""])
def test_a_project_that_is_no_number_is_refused(project: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["versions", f"--project={project}"])
    assert refused.value.code == 2
    assert f"{project!r} is no project: give its number" in capsys.readouterr().err


def test_versions_of_a_fresh_installation_are_only_the_header(capsys: Capture, data_dir: Path) -> None:
    assert main(["versions"]) == 0
    assert printed(capsys) == ["No project has trained yet: v0, the starter, answers for every one."]
    assert list(data_dir.iterdir()) == []


def test_versions_lists_each_projects_versions_and_marks_the_one_in_service(
    versions: ProjectVersions, data_dir: Path, capsys: Capture
) -> None:
    other = ProjectVersions(data_dir / "models", 10)
    publish(other, 1)
    versions.make_current(2)
    assert main(["versions"]) == 0
    assert printed(capsys) == [
        HEADER,
        "7 v0 where it starts from",
        row(versions, 1),
        row(versions, 2) + " <- live",
        row(versions, 3),
        "10 v0 where it starts from",
        row(other, 1) + " <- live",
    ]
    assert main(["versions", "--project", "10"]) == 0
    assert printed(capsys) == [HEADER, "10 v0 where it starts from", row(other, 1) + " <- live"]


def test_versions_lists_the_base_and_what_was_rejected_and_why(
    versions: ProjectVersions, base: ProjectVersions, capsys: Capture
) -> None:
    publish(versions, 4, verdict=REJECTED)
    publish(base, 1)
    publish(base, 2, verdict=REJECTED)
    assert main(["versions"]) == 0
    rows = printed(capsys)
    assert rows[1:4] == ["base v0 where it starts from", row(base, 1) + " <- live", row(base, 2)]
    assert rows[4] == "7 base-v1 where it starts from"
    assert rows[-2:] == [row(versions, 3) + " <- live", row(versions, 4)]
    assert "REJECTED on 40 comments (hold-out): its log loss is 0.2000" in rows[-1]
    assert "base base-v2 base-v1" in rows[3]


def test_a_project_that_never_trained_is_served_by_what_it_starts_from(base: ProjectVersions, capsys: Capture) -> None:
    assert main(["versions", "--project", "5"]) == 0
    assert printed(capsys) == [HEADER, "5 v0 where it starts from <- live"]
    publish(base, 1)
    assert main(["versions", "--project", "5"]) == 0
    assert printed(capsys) == [HEADER, "5 base-v1 where it starts from <- live"]


@pytest.mark.parametrize("typed", ["v1", "1"])
def test_rollback_puts_an_older_version_in_service(versions: ProjectVersions, capsys: Capture, typed: str) -> None:
    assert main(["rollback", typed, "--project", "7"]) == 0
    assert printed(capsys) == [
        "project 7: v1 is in service; every process swaps to it by itself",
        "The next training run starts from it and learns every annotation since. Correct or delete wrong ones before that.",
    ]
    assert versions.current() == 1


@pytest.mark.parametrize("typed", ["base-v1", "v1", "1"])
def test_rollback_without_a_project_is_that_of_the_base(
    versions: ProjectVersions, base: ProjectVersions, capsys: Capture, typed: str
) -> None:
    for number in (1, 2):
        publish(base, number)
    assert main(["rollback", typed]) == 0
    assert printed(capsys) == ["the base: base-v1 is in service; every process swaps to it by itself"]
    assert (base.current(), versions.current()) == (1, 3)
    assert main(["rollback", "v0"]) == 0
    assert printed(capsys) == ["the base: v0 is in service; every process swaps to it by itself"]
    assert base.current() == 0


def test_rollback_without_a_project_says_where_versions_are(versions: ProjectVersions, data_dir: Path, capsys: Capture) -> None:
    assert main(["rollback", "v1"]) == 1
    expected = (
        f"toxicity: the base has no versions in {data_dir / 'models'}; there are those of project 7; say which by --project.\n"
    )
    assert capsys.readouterr() == ("", expected)
    assert versions.current() == 3


def test_a_rejected_version_is_put_in_service_by_rollback(versions: ProjectVersions, capsys: Capture) -> None:
    publish(versions, 4, verdict=REJECTED)
    assert main(["rollback", "v4", "--project", "7"]) == 0
    assert versions.current() == 4
    capsys.readouterr()
    assert main(["versions", "--project", "7"]) == 0
    assert printed(capsys)[-1] == row(versions, 4) + " <- live"


def test_prune_removes_all_but_the_newest_the_live_one_and_the_best(
    versions: ProjectVersions, base: ProjectVersions, capsys: Capture
) -> None:
    publish(versions, 4, best=2)
    publish(base, 1)
    assert main(["prune", "--keep", "1", "--project", "7"]) == 0
    assert printed(capsys) == ["project 7: removed v1, v3; kept v2, v4"]
    assert main(["prune"]) == 0
    assert printed(capsys) == ["the base: removed nothing; kept base-v1", "project 7: removed nothing; kept v2, v4"]
    assert main(["prune", "--project", "8"]) == 0
    assert printed(capsys) == [f"There are no versions in {versions.root.parent} to remove."]


def test_prune_keeps_as_many_as_the_setting_says(
    versions: ProjectVersions, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEP_VERSIONS", "2")
    assert main(["prune"]) == 0
    assert printed(capsys) == ["project 7: removed v1; kept v2, v3"]
    assert versions.numbers() == [2, 3]


def test_after_a_rollback_to_the_starter_versions_still_marks_what_is_in_service(
    versions: ProjectVersions, capsys: Capture
) -> None:
    assert main(["rollback", "v0", "--project", "7"]) == 0
    assert versions.current() == 0
    capsys.readouterr()
    assert main(["versions", "--project", "7"]) == 0
    assert [line.split()[1] for line in printed(capsys) if line.endswith(" <- live")] == ["v0"]


def test_rollback_to_a_version_that_does_not_exist_fails_and_changes_nothing(versions: ProjectVersions, capsys: Capture) -> None:
    assert main(["rollback", "v9", "--project", "7"]) == 1
    assert capsys.readouterr() == (
        "",
        "toxicity: There is no version v9; there are v1, v2, v3, and v0, where they started from.\n",
    )
    assert versions.current() == 3


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["learn"], "invalid choice: 'learn'"),
        (["train"], "the following arguments are required: corpus"),
        (["train", "x.csv", "--epochs", "0"], "--epochs: '0' is not a whole number from 1 up"),
        (["evaluate"], "the following arguments are required: corpus"),
        (["predict"], "the following arguments are required: comments, -o/--output"),
        (["prune", "--keep", "0"], "--keep: '0' is not a whole number from 1 up"),
        (["rollback"], "the following arguments are required: version"),
        (["rollback", "base-newest"], "'base-newest' is no version: give one like v3"),
        (["rollback", "--project", "7"], "the following arguments are required: version"),
        (["rollback", "newest", "--project", "7"], "'newest' is no version: give one like v3"),
        (["starter"], "the following arguments are required: corpus"),
        (["versions", "--project", "x"], "'x' is no project: give its number"),
    ],
)
def test_a_command_typed_wrong_is_explained_with_exit_code_2(arguments: list[str], reason: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err


def test_settings_prints_the_table_that_readme_has(capsys: Capture) -> None:
    assert main(["settings"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (settings_table() + "\n", "")
    assert "| `DATA_DIR` | `data` |" in out


@pytest.mark.parametrize("arguments", [["versions"], ["settings"], ["train", "x.csv"], ["rollback", "v1", "--project", "7"]])
def test_a_wrong_setting_ends_every_command_with_its_name(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("PORT", "http")
    assert main(arguments) == 1
    assert capsys.readouterr() == ("", "toxicity: PORT='http' is not a whole number.\n")


def test_a_manifest_that_cannot_be_read_is_told_in_its_row(versions: ProjectVersions, capsys: Capture) -> None:
    path = versions.folder(2) / "manifest.json"
    path.write_text("{")
    assert main(["versions"]) == 0
    rows = printed(capsys)
    assert rows[3].startswith(f"7 v2 DAMAGED: {path} cannot be read (JSONDecodeError: ")
    assert rows[4] == row(versions, 3) + " <- live"


def test_rollback_of_a_project_that_never_trained_is_refused(capsys: Capture, data_dir: Path) -> None:
    assert main(["rollback", "v0", "--project", "999"]) == 1
    expected = f"toxicity: project 999 has no versions in {data_dir / 'models'}; there are none yet.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("command", ["train", "starter"])
def test_a_corpus_that_cannot_be_used_is_told_before_tensorflow_is_loaded(command: str, tmp_path: Path) -> None:
    corpus = tmp_path / "train.csv"
    script = "import sys; from toxicity.__main__ import main; print(main(sys.argv[1:]), 'tensorflow' in sys.modules)"

    def told() -> str:
        arguments = [sys.executable, "-c", script, command, str(corpus)]
        finished = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
        assert finished.stdout == "1 False\n"
        return finished.stderr

    assert told() == f"toxicity: [Errno 2] No such file or directory: '{corpus}'\n"
    corpus.write_text("id,comment_text\n")
    assert told().startswith(f"toxicity: {corpus}, line 1: no column toxic, severe_toxic, ")


@pytest.fixture
def tiny(tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands use an encoder that builds and trains in no time."""
    monkeypatch.setenv("ENCODER", str(tiny_encoder))
    monkeypatch.setenv("MAX_LENGTH", "32")


@pytest.mark.tensorflow
@pytest.mark.usefixtures("tiny")
def test_train_says_what_was_held_out_how_good_it_is_and_whether_it_is_in_service(
    base: ProjectVersions, data_dir: Path, capsys: Capture
) -> None:
    corpus, wrong = write_csv(data_dir / "train.csv", 60, 60), write_csv(data_dir / "wrong.csv", 60, 60, upside_down=True)
    with corpus.open("a") as opened:
        opened.write("c999,unscored,-1,-1,-1,-1,-1,-1\n")
    validate = write_csv(data_dir / "validate.csv", 20, 20)

    def train(*arguments: object) -> tuple[int, list[str]]:
        code = main(["train", *map(str, arguments), "--validate", str(validate)])
        return code, [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    code, lines = train(corpus, "--epochs", 1)
    assert (code, base.current(), base.manifest(1).verdict.accepted) == (0, 0, False)
    assert lines[0] == "120 comments to train on, 40 held out, 1 left out (not scored)"
    assert lines[2] == "base-v1, measured on 40 comments (hold-out)"
    assert lines[4] == "ROC AUC F1 precision recall positives threshold"
    assert [line.split()[0] for line in lines[5:12]] == [*LABELS, "mean"]
    reasons = "not worse than v0; kept aside, as --publish was not given"
    assert lines[-2] == f"base-v1 is kept and not in service ({reasons}); v0 is"
    assert lines[-1] == "To put it in service all the same: .venv/bin/python -m toxicity rollback base-v1 --project 0"

    code, lines = train(corpus, "--epochs", 6, "--publish")
    assert (code, base.current()) == (0, 2)
    assert lines[-1] == "base-v2 is in service (not worse than v0); every process swaps to it by itself"

    code, lines = train(wrong, "--epochs", 6, "--publish")
    assert (code, base.current(), base.numbers()) == (1, 2, [2, 3])
    assert lines[-2].startswith("base-v3 is kept and not in service (")
    assert lines[-2].endswith("; base-v2 is")


@pytest.mark.tensorflow
@pytest.mark.usefixtures("tiny")
def test_evaluate_and_predict_use_the_live_version(data_dir: Path, capsys: Capture) -> None:
    comments, labels, output = data_dir / "test.csv", data_dir / "test_labels.csv", data_dir / "submission.csv"
    comments.write_text("id,comment_text\na,first\nb,second\nc,third\n")
    labels.write_text(f"id,{','.join(LABELS)}\na,1,0,0,0,0,0\nb,0,0,0,0,0,0\nc,-1,-1,-1,-1,-1,-1\n")
    assert main(["evaluate", str(comments), "--labels", str(labels)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"v0 on 2 comments of {comments}, 1 left out (not scored)"
    assert [line.split()[0] for line in lines[3:10]] == [*LABELS, "mean"]
    assert lines[6].startswith("threat - - ")  # no threat is among them: what cannot be measured is no number
    assert main(["predict", str(comments), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output} written by v0\n"
    with output.open(newline="") as opened:
        header, *rows = csv.reader(opened)
    assert (header, [row[0] for row in rows]) == (["id", *LABELS], ["a", "b", "c"])
    assert all(0 < float(value) < 1 for row in rows for value in row[1:])


@pytest.mark.tensorflow
@pytest.mark.usefixtures("tiny")
def test_a_file_that_evaluate_or_predict_cannot_use_is_told_and_nothing_is_written(data_dir: Path, capsys: Capture) -> None:
    comments, output = data_dir / "test.csv", data_dir / "submission.csv"
    comments.write_text("id,comment_text\na,first\n")
    assert main(["evaluate", str(comments)]) == 1
    assert capsys.readouterr().err.startswith(f"toxicity: {comments}, line 1: no column toxic, ")
    comments.write_text("id,text\na,first\n")
    assert main(["predict", str(comments), "-o", str(output)]) == 1
    assert f"toxicity: {comments}, line 1: no column comment_text" in capsys.readouterr().err
    assert sorted(data_dir.iterdir()) == [comments]


@pytest.fixture
def training(data_dir: Path, tiny_encoder: Path) -> Iterator["subprocess.Popen[str]"]:
    """`train` over a corpus that takes it minutes."""
    corpus = write_csv(data_dir / "train.csv", 20_000, 20_000)
    environment = {**os.environ, "DATA_DIR": str(data_dir), "ENCODER": str(tiny_encoder), "MAX_LENGTH": "32"}
    command = [sys.executable, "-u", "-m", "toxicity", "train", str(corpus), "--epochs", "9", "--publish"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.processes
def test_ctrl_c_ends_train_in_one_line_and_writes_nothing(training: "subprocess.Popen[str]", base: ProjectVersions) -> None:
    assert training.stderr is not None
    shown, deadline = "", time.monotonic() + 120
    while "loss=" not in shown:
        assert time.monotonic() < deadline, shown
        assert training.poll() is None, shown + training.stderr.read()
        shown += training.stderr.read(1)
    training.send_signal(signal.SIGINT)
    assert training.wait(60) == 130
    rest = training.stderr.read()
    assert rest.endswith("\ntoxicity: interrupted; nothing is left half written\n")
    assert "Traceback" not in shown + rest
    assert base.numbers() == []
