"""A server's configuration: what is written for a newcomer is what is read."""

import tomllib
from pathlib import Path

import pytest

from fedpeft.errors import ConfigError
from fedpeft_server.config import ServerConfig, load_server_config, write_server_config


def written(folder: Path, text: str) -> Path:
    path = folder / "server.toml"
    path.write_text(text)
    return path


def test_the_written_file_is_all_defaults(tmp_path: Path) -> None:
    path = write_server_config(tmp_path / "new")
    assert load_server_config(path).listen == ServerConfig().listen
    with pytest.raises(ConfigError, match="there is a configuration"):
        write_server_config(tmp_path / "new")


def test_every_default_in_it_can_be_switched_on(tmp_path: Path) -> None:
    path = write_server_config(tmp_path)
    text = path.read_text()
    switched = tomllib.loads(text.replace("#!", ""))
    assert set(switched) == set(ServerConfig.model_fields)
    path.write_text(text.replace("#!", ""))
    loaded = load_server_config(path)
    assert loaded.model_dump() == load_server_config(written(tmp_path, "")).model_dump()
    for name, section in ServerConfig():
        assert set(switched[name]) == set(type(section).model_fields)


def test_paths_are_taken_from_the_files_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = written(
        tmp_path, '[storage]\nartifacts = "s3://bucket/x"\n[runs]\nfolders = ["a", "/b"]\n'
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load_server_config(Path("../server.toml"))
    base = tmp_path / "elsewhere" / ".."
    assert loaded.identity.key == base / "identity/key.pem"
    assert loaded.database == str(base / "state/server.db")
    assert loaded.artifacts == "s3://bucket/x"
    assert loaded.runs.folders == (base / "a", Path("/b"))
    assert load_server_config(written(path.parent, "")).artifacts == str(
        path.parent / "state/artifacts"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[listn]\n", "listn does not exist; did you mean listen?"),
        ("[listen]\nprt = 1\n", "did you mean listen.port?"),
        ("[storage]\nport = 1\n", "did you mean listen.port?"),
        ("[listen]\nport = 65536\n", "listen.port: input should be less than or equal to 65535"),
        ("[listen]\nport = '7443'\nhost = 1\n", "listen.host: "),
        ('[listen]\npublic_fleet_address = "a b"\n', "expected a server as host or host:port"),
        ("[log]\nlevel = 'loud'\n", "log.level: "),
        ("[limits]\nmax_streams = 0\n", "limits.max_streams: "),
        ("[limits]\nshutdown_s = inf\n", "limits.shutdown_s: "),
        ("listen = 1\n", "listen: "),
        ("[listen\n", "is not a readable TOML file"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_server_config(written(tmp_path, text))
    assert message in str(refused.value)


def test_a_password_is_refused_and_not_repeated(tmp_path: Path) -> None:
    path = written(tmp_path, '[storage]\ndatabase = "postgresql://u:hunter2@db/x"\n')
    with pytest.raises(ConfigError, match="must not hold a password") as refused:
        load_server_config(path)
    assert "hunter2" not in str(refused.value)


def test_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load_server_config(tmp_path / "server.toml")
