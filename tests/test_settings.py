"""Settings: defaults, every variable, and what a person is told about a wrong one."""

import dataclasses
from pathlib import Path

import pytest

from toxicity.settings import Settings, settings_from_environment, settings_table

VARIABLES = [field.name.upper() for field in dataclasses.fields(Settings)]
EVERY_VARIABLE = """
HOST=0.0.0.0 PORT=8080 BASIC_AUTH_USER=studio BASIC_AUTH_PASS=not-a-real-one WEBHOOK_SECRET=nor-this LIVE_MODELS=3
REDIS_URL=redis://cache:6380/2 DATA_DIR=/srv/toxicity ENCODER=/srv/bert MAX_LENGTH=64 TRAIN_AFTER=8
TRAIN_WAIT=0 TRAIN_EPOCHS=2 LEARNING_RATE=1e-05 TRAIN_TIMEOUT=60 REPLAY=0 HOLD_OUT=0.1 PRECISION_FLOOR=0.9
CORPUS={corpus} KEEP_VERSIONS=3 SWAP_POLL=0.5 THREADS=4 CACHED_PREDICTIONS=50
LOG_LEVEL=DEBUG LABEL_STUDIO_URL=http://studio:8080 LABEL_STUDIO_API_KEY=not-a-real-key
"""


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = settings_from_environment({})
    assert settings == Settings(data_dir=Path.cwd() / "data")
    assert (settings.host, settings.port, settings.encoder, settings.redis_url) == ("127.0.0.1", 9090, "embedded", "")


def test_every_setting_is_read_from_the_variable_of_its_name(tmp_path: Path) -> None:
    corpus = tmp_path / "train.csv"
    corpus.touch()
    environment = dict(pair.split("=") for pair in EVERY_VARIABLE.format(corpus=corpus).split())
    settings = dataclasses.asdict(settings_from_environment(environment))
    assert {name.upper(): str(value) for name, value in settings.items()} == environment
    for field in dataclasses.fields(Settings):
        assert type(settings[field.name]) is type(field.default)
        assert settings[field.name] != field.default


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_an_empty_variable_counts_as_unset(text: str) -> None:
    assert settings_from_environment(dict.fromkeys(VARIABLES, text)) == settings_from_environment({})


def test_the_process_environment_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAIN_AFTER", "31")
    assert settings_from_environment().train_after == 31


@pytest.mark.parametrize(
    ("variable", "text", "kind"),
    [
        ("PORT", "http", "a whole number"),
        ("TRAIN_AFTER", "1.5", "a whole number"),
        ("LEARNING_RATE", "small", "a number"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_variable_and_value(variable: str, text: str, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^{variable}='{text}' is not {kind}\.$"):
        settings_from_environment({variable: text})


LEAST = {"PORT": 1, "MAX_LENGTH": 16, "TRAIN_AFTER": 1, "TRAIN_WAIT": 0, "TRAIN_EPOCHS": 1, "TRAIN_TIMEOUT": 1}
LEAST |= {"REPLAY": 0, "KEEP_VERSIONS": 2, "THREADS": 1, "CACHED_PREDICTIONS": 1}


@pytest.mark.parametrize(("variable", "least"), LEAST.items())
def test_the_least_value_is_taken_and_one_less_is_refused(variable: str, least: int) -> None:
    assert getattr(settings_from_environment({variable: str(least)}), variable.lower()) == least
    with pytest.raises(ValueError, match=rf"^{variable}={least - 1} is too small: use {least} or more\.$"):
        settings_from_environment({variable: str(least - 1)})


def test_a_port_above_65535_is_refused() -> None:
    assert settings_from_environment({"PORT": "65535"}).port == 65535
    with pytest.raises(ValueError, match=r"^PORT=65536 is no port: use 1 to 65535\.$"):
        settings_from_environment({"PORT": "65536"})


@pytest.mark.parametrize("variable", ["LEARNING_RATE", "SWAP_POLL"])
@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf"])
def test_a_rate_or_pause_has_to_be_a_finite_number_above_0(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{variable}="):
        settings_from_environment({variable: text})


@pytest.mark.parametrize("variable", ["HOLD_OUT", "PRECISION_FLOOR"])
def test_a_share_is_a_number_from_0_to_under_1(variable: str) -> None:
    for text in ("0", "0.0", "0.5", "0.999"):
        assert getattr(settings_from_environment({variable: text}), variable.lower()) == float(text)
    for text in ("1", "1.0", "-0.1", "20", "nan", "inf"):
        with pytest.raises(ValueError, match=rf"^{variable}={float(text)} is out of range: use a number from 0 to under 1\.$"):
            settings_from_environment({variable: text})


def test_a_corpus_that_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ValueError, match=rf"^CORPUS='{path}' is no file: give the path of a Jigsaw-format CSV\.$"):
            settings_from_environment({"CORPUS": str(path)})


@pytest.mark.parametrize("text", ["info", "VERBOSE", "10"])
def test_an_unknown_log_level_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^LOG_LEVEL='{text}' is unknown: use DEBUG, INFO, WARNING or ERROR"):
        settings_from_environment({"LOG_LEVEL": text})


@pytest.mark.parametrize(("given", "missing"), [("URL", "API_KEY"), ("API_KEY", "URL")])
def test_label_studios_address_and_key_are_set_together_or_not_at_all(given: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f"^LABEL_STUDIO_{given} is set without LABEL_STUDIO_{missing}: set both or neither"):
        settings_from_environment({f"LABEL_STUDIO_{given}": "x"})


def test_a_relative_data_dir_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_from_environment({"DATA_DIR": "kept/here"}).data_dir == tmp_path / "kept" / "here"
    assert settings_from_environment({}).data_dir == tmp_path / "data"


def test_a_tilde_in_data_dir_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings_from_environment({"DATA_DIR": "~/kept"}).data_dir == tmp_path / "kept"


def test_the_home_folder_of_nobody_in_data_dir_is_refused_by_variable() -> None:
    with pytest.raises(ValueError, match=r"^DATA_DIR="):
        settings_from_environment({"DATA_DIR": "~no-such-user-here/kept"})


def test_the_table_has_one_line_for_each_variable_with_its_default() -> None:
    lines = settings_table().splitlines()
    assert lines[:2] == ["| variable | default | meaning |", "|---|---|---|"]
    assert [line.split("|")[1].strip(" `") for line in lines[2:]] == VARIABLES
    assert "| `PORT` | `9090` | Port that the backend listens on. |" in lines
    assert any(line.startswith("| `REDIS_URL` |  | ") for line in lines)
