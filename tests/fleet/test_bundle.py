"""The bundle of a run: no code in it, and one hash for a protocol."""

import io
import zipfile

from flwr.cli.config_utils import get_fab_config
from flwr.clientapp import ClientApp
from flwr.common.config import validate_config
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app

from fedpeft_server.fleet import build_bundle

KNOWN = "f0d3a69d92c300d73d633a473d9c37edb4011c4c1162f56609b352282a47e9e8"
"""Nodes list this hash in their policy: it changes with the protocol only."""


def test_it_holds_one_project_file_and_builds_to_the_same_bytes() -> None:
    bundle = build_bundle()
    assert build_bundle().content == bundle.content
    assert bundle.hash == KNOWN
    with zipfile.ZipFile(io.BytesIO(bundle.content)) as archive:
        assert archive.namelist() == ["pyproject.toml"]


def test_flower_takes_it_and_finds_what_is_installed() -> None:
    config = get_fab_config(build_bundle().content)
    assert validate_config(config, check_module=True)[:2] == (True, [])
    assert config["project"]["dependencies"] == []
    components = config["tool"]["flwr"]["app"]["components"]
    assert isinstance(load_app(components["clientapp"], ImportError), ClientApp)
    assert isinstance(load_app(components["serverapp"], ImportError), ServerApp)
