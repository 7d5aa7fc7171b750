"""The commands as a person types them: what they print, where, and with which exit code."""

from pathlib import Path

import pytest

from tests.conftest import publish
from toxicity.__main__ import main
from toxicity.settings import Settings, settings_table
from toxicity.versions import ProjectVersions

Capture = pytest.CaptureFixture[str]

HEADER = "project version parent made new loss in service"
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


def printed(capsys: Capture) -> list[str]:
    """What a command wrote to stdout, each line's columns one space apart; nothing went to stderr."""
    out, err = capsys.readouterr()
    assert err == ""
    return [" ".join(line.split()) for line in out.splitlines()]


def listed(*rows: str) -> list[str]:
    return [HEADER, *rows]


def test_versions_of_a_fresh_installation_are_only_the_header(capsys: Capture, data_dir: Path) -> None:
    assert main(["versions"]) == 0
    assert printed(capsys) == ["No project has trained yet: v0, the starter, answers for every one."]
    assert list(data_dir.iterdir()) == []


def test_versions_lists_each_projects_versions_and_marks_the_one_in_service(
    versions: ProjectVersions, data_dir: Path, capsys: Capture
) -> None:
    publish(ProjectVersions(data_dir / "models", 10), 1)
    versions.make_current(2)
    assert main(["versions"]) == 0
    assert printed(capsys) == listed(
        "7 v0 the starter",
        f"7 v1 v0 {MADE} 1 0.1000",
        f"7 v2 v1 {MADE} 1 0.1000 yes",
        f"7 v3 v2 {MADE} 1 0.1000",
        "10 v0 the starter",
        f"10 v1 v0 {MADE} 1 0.1000 yes",
    )
    assert main(["versions", "--project", "10"]) == 0
    assert printed(capsys) == listed("10 v0 the starter", f"10 v1 v0 {MADE} 1 0.1000 yes")


def test_a_project_that_never_trained_is_served_by_the_starter(capsys: Capture) -> None:
    assert main(["versions", "--project", "5"]) == 0
    assert printed(capsys) == listed("5 v0 the starter yes")


@pytest.mark.parametrize("typed", ["v1", "1"])
def test_rollback_puts_an_older_version_in_service(versions: ProjectVersions, capsys: Capture, typed: str) -> None:
    assert main(["rollback", typed, "--project", "7"]) == 0
    assert printed(capsys) == [
        "project 7: v1 is in service; every process swaps to it by itself",
        "The next training run starts from it and learns every annotation since. Correct or delete wrong ones before that.",
    ]
    assert versions.current() == 1


def test_after_a_rollback_to_the_starter_versions_still_marks_what_is_in_service(
    versions: ProjectVersions, capsys: Capture
) -> None:
    assert main(["rollback", "v0", "--project", "7"]) == 0
    assert versions.current() == 0
    capsys.readouterr()
    assert main(["versions", "--project", "7"]) == 0
    assert [line.split()[1] for line in printed(capsys) if line.endswith(" yes")] == ["v0"]


def test_rollback_to_a_version_that_does_not_exist_fails_and_changes_nothing(versions: ProjectVersions, capsys: Capture) -> None:
    assert main(["rollback", "v9", "--project", "7"]) == 1
    assert capsys.readouterr() == ("", "toxicity: Project 7 has no version 9; it has [1, 2, 3], and 0, the starter.\n")
    assert versions.current() == 3


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["predict"], "invalid choice: 'predict'"),
        (["rollback", "v1"], "the following arguments are required: --project"),
        (["rollback", "--project", "7"], "the following arguments are required: version"),
        (["rollback", "newest", "--project", "7"], "'newest' is no version: give one like v3"),
        (["starter"], "the following arguments are required: corpus"),
        (["versions", "--project", "x"], "--project: invalid int value: 'x'"),
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


@pytest.mark.parametrize("arguments", [["versions"], ["settings"], ["rollback", "v1", "--project", "7"]])
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
    assert rows[4] == f"7 v3 v2 {MADE} 1 0.1000 yes"


def test_rollback_of_a_project_that_never_trained_is_refused(capsys: Capture, data_dir: Path) -> None:
    assert main(["rollback", "v0", "--project", "999"]) == 1
    assert capsys.readouterr().err == f"toxicity: Project 999 has no versions in {data_dir / 'models'}.\n"


def test_a_pointer_that_cannot_be_read_is_told_with_exit_code_1(versions: ProjectVersions, capsys: Capture) -> None:
    (versions.root / "current").write_text("garbage")
    assert main(["versions"]) == 1
    expected = f"toxicity: {versions.root}/current says 'garbage', not two numbers: remove it to serve the newest version.\n"
    assert capsys.readouterr().err == expected
