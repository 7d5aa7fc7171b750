"""Every setting: its environment variable, its default, its meaning. The only module that reads the environment.

Read once, where a process, a job or a command begins, and passed on as one frozen value. README's table is printed from
here by `python -m toxicity settings`.
"""

import dataclasses
import ipaddress
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EMBEDDED = "embedded"  # the encoder that comes with the packages
LOOPBACK = "127.0.0.1"
SPOOL = "spool"  # folder in DATA_DIR
SECRET_HEADER = "X-Toxicity-Secret"  # noqa: S105 # a header's name, in which /webhook takes WEBHOOK_SECRET
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def setting(default: Any, meaning: str, secret: bool = False) -> Any:
    """Declare a setting: its default, the sentence for README's table, and whether its value is never shown."""
    return dataclasses.field(default=default, repr=not secret, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Settings:
    """All settings of the backend, the worker and the commands. Times are in seconds, lengths in word pieces."""

    host: str = setting("127.0.0.1", "Address that the backend listens on; any but this machine's own only with credentials.")
    port: int = setting(9090, "Port that the backend listens on.")
    basic_auth_user: str = setting(
        "", "User that callers have to give (HTTP Basic Auth). Empty: only this machine is listened to."
    )
    basic_auth_pass: str = setting("", "The user's password.", secret=True)
    webhook_secret: str = setting(
        "", "What `/webhook` takes in the header `X-Toxicity-Secret` too, as it gets no Basic Auth.", secret=True
    )
    redis_url: str = setting("", "Redis to use, e.g. `redis://host:6379/0`. Empty: an embedded one, kept in `DATA_DIR`.")
    data_dir: Path = setting(Path("data"), "Everything that is kept: versions, the encoder, the embedded Redis' files.")
    encoder: str = setting(EMBEDDED, "BERT encoder: `embedded`, a SavedModel's folder, or a TensorFlow Hub URL.")
    max_length: int = setting(128, "Word pieces of a comment that are read, `[CLS]` and `[SEP]` included.")
    train_after: int = setting(16, "Train as soon as so many examples are new or changed.")
    train_wait: int = setting(300, "Train at the latest so many seconds after the first of them; also the pause after a failure.")
    train_epochs: int = setting(3, "Passes of one training run over its examples.")
    learning_rate: float = setting(5e-5, "The encoder's peak learning rate; the head's is ten times as high.")
    train_timeout: int = setting(7200, "Seconds after which a training run is ended.")
    replay: int = setting(1, "Older examples learned again with each new one; with anchors 64 at least, 2,000 at most.")
    hold_out: float = setting(0.2, "Share of a project's examples that is never learned, so that versions are judged on it.")
    precision_floor: float = setting(0.0, "Least precision of a tick that thresholds aim at; 0: the best F1 instead.")
    corpus: str = setting("", "Jigsaw-format CSV of which each training run replays a sample, e.g. the starter's.")
    keep_versions: int = setting(
        5, "Accepted versions kept for each project, beside the live and the best one; as many rejected ones."
    )
    swap_poll: float = setting(2.0, "Seconds between two looks for a newly published version.")
    live_models: int = setting(8, "Projects whose own versions stay in memory, 70 MB each; others are loaded again when needed.")
    threads: int = setting(16, "Predictions that are computed at the same time; 8 more may wait, others are answered 503.")
    cached_predictions: int = setting(100_000, "Predictions kept in memory, so that a version computes no comment again.")
    log_level: str = setting("INFO", "What is logged: `DEBUG`, `INFO`, `WARNING` or `ERROR`. Never a comment's text.")
    label_studio_url: str = setting("", "Label Studio's address. With the key: START_TRAINING first takes over what it has.")
    label_studio_api_key: str = setting("", "A Personal Access Token of Label Studio.", secret=True)

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ValueError: a value cannot work; the message names the variable, the value and what it takes.
        """
        at_least = {"port": 1, "max_length": 16, "train_after": 1, "train_wait": 0, "train_epochs": 1, "train_timeout": 1}
        at_least |= {"replay": 0, "keep_versions": 2, "threads": 1, "cached_predictions": 1, "live_models": 1}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name.upper()}={getattr(self, name)} is too small: use {least} or more.")
        if self.port > 65535:
            raise ValueError(f"PORT={self.port} is no port: use 1 to 65535.")
        for name, most in (("learning_rate", 1.0), ("swap_poll", 3600.0)):
            if not 0 < getattr(self, name) <= most:
                raise ValueError(f"{name.upper()}={getattr(self, name)} is out of range: use a number above 0, up to {most}.")
        for name in ("hold_out", "precision_floor"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name.upper()}={getattr(self, name)} is out of range: use a number from 0 to under 1.")
        if self.corpus and not Path(self.corpus).is_file():
            raise ValueError(f"CORPUS={self.corpus!r} is no file: give the path of a Jigsaw-format CSV.")
        if self.log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError(f"LOG_LEVEL={self.log_level!r} is unknown: use DEBUG, INFO, WARNING or ERROR.")
        self._check_label_studio()
        self._check_credentials()

    def _check_label_studio(self) -> None:
        if bool(self.label_studio_url) != bool(self.label_studio_api_key):
            given, missing = ("URL", "API_KEY") if self.label_studio_url else ("API_KEY", "URL")
            raise ValueError(f"LABEL_STUDIO_{given} is set without LABEL_STUDIO_{missing}: set both or neither.")

    def _check_credentials(self) -> None:
        names = ("basic_auth_user", "basic_auth_pass", "webhook_secret")
        missing = [name.upper() for name in names if not getattr(self, name)]
        if missing and len(missing) < len(names):
            given = next(name.upper() for name in names if getattr(self, name))
            raise ValueError(
                f"{given} is set without {' and '.join(missing)}: set all three or none. "
                "Label Studio's webhooks carry no Basic Auth, so without the secret every annotation would be refused."
            )
        if ":" in self.basic_auth_user:
            raise ValueError("BASIC_AUTH_USER holds a colon, which ends the name in HTTP Basic Auth: use another name.")

    def has_credentials(self) -> bool:
        """Whether callers have to say who they are."""
        return bool(self.basic_auth_user)

    def listening_host(self) -> str:
        """Return the address to listen on: HOST, or this machine's own alone where anybody could ask."""
        return self.host if self.has_credentials() or _is_loopback(self.host) else LOOPBACK

    def narrowed_host(self) -> str:
        """Return a sentence for whoever set a HOST that is not listened on; '' where it is."""
        if self.listening_host() == self.host:
            return ""
        return (
            f"HOST={self.host} is not listened on, only {self.listening_host()}, as anybody could ask: "
            "set BASIC_AUTH_USER, BASIC_AUTH_PASS and WEBHOOK_SECRET to open it."
        )

    def models_dir(self) -> Path:
        """Return the folder that holds each project's versions."""
        return self.data_dir / "models"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def settings_from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read every setting, an empty variable counting as unset.

    Raises:
        ValueError: a value is of the wrong kind or out of range; the message names the variable.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        text = environment.get(field.name.upper(), "").strip()
        if text:
            values[field.name] = _parsed(field, text)
    try:
        values["data_dir"] = Path(values.get("data_dir", Settings.data_dir)).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"DATA_DIR={str(values['data_dir'])!r} cannot be found ({error}): give a folder's path.") from error
    return Settings(**values)


def prepare_tensorflow() -> None:
    """Have TensorFlow, once it is imported, load the Keras that is used here and no other, which takes seconds more.

    TensorFlow Hub's layers are Keras 2's (tf_keras); left alone, TensorFlow imports Keras 3 and all that it rests on as well.
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    # tensorflow-hub imports what setuptools is about to drop; requirements.in holds setuptools back.
    warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)


def quiet_tensorflow() -> None:
    """Let TensorFlow, where nothing else was asked for, tell a command's user of warnings and errors only."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


def _parsed(field: "dataclasses.Field[Any]", text: str) -> Any:
    kind: type[Any] = type(field.default)
    try:
        return kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{field.name.upper()}={text!r} is not {wanted}.") from None


def settings_table() -> str:
    """Return README's table of settings as Markdown."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(Settings):
        default = f"`{field.default}`" if str(field.default) else ""
        lines.append(f"| `{field.name.upper()}` | {default} | {field.metadata['meaning']} |")
    return "\n".join(lines)
