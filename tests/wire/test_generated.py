"""The committed stubs are those of the committed protos."""

import re
import tomllib
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).parents[2]


def test_stubs_are_fresh(tmp_path: Path) -> None:
    """What `make protos` would write is what is there."""
    makefile = (ROOT / "Makefile").read_text()
    [command] = re.findall(r"^\t.*-m grpc_tools\.protoc (.*)$", makefile, re.MULTILINE)
    arguments = command.replace("=.", f"={tmp_path}").replace("=protos", f"={ROOT / 'protos'}")
    protos = sorted((ROOT / "protos" / "fedpeft" / "wire" / "v1").glob("*.proto"))
    flags = [word for word in arguments.split() if word.startswith("--")]
    well_known = f"--proto_path={Path(grpc_tools.__file__).parent / '_proto'}"
    assert protoc.main(["protoc", *flags, well_known, *map(str, protos)]) == 0
    committed = ROOT / "fedpeft" / "wire" / "v1"
    made = {path.name: path.read_text() for path in (tmp_path / "fedpeft/wire/v1").iterdir()}
    there = {path.name: path.read_text() for path in committed.glob("*_pb2*.py*")}
    assert len(made) == 3 * len(protos)
    assert made == there, "run: make protos"


def test_what_the_stubs_ask_for_is_asked_for() -> None:
    """Older libraries refuse to import them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    remote = project["optional-dependencies"]["remote"]
    stub = (ROOT / "fedpeft/wire/v1/runs_pb2_grpc.py").read_text()
    [grpcio] = re.findall(r"GRPC_GENERATED_VERSION = '(.*)'", stub)
    message = (ROOT / "fedpeft/wire/v1/runs_pb2.py").read_text()
    protobuf = re.findall(r"^    (\d+),$", message, re.MULTILINE)[:3]
    assert remote == [f"grpcio>={grpcio}", f"protobuf>={'.'.join(protobuf)}"]
