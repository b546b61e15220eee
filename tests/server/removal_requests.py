"""Removal requests for tests: a deployed adapter, rows, and what a client asks for."""

from typing import Any

from fedpeft.remote.removal_records import Removal, RemovalOrder
from fedpeft.unlearning.records import JobRows, records_digest
from fedpeft_server.records import ExportedFile
from tests.server.control_rig import Rig
from tests.server.runs import play_round, submitted

SALT = bytes(32)
SECRET = "Basil Mahfouz"
ROWS = JobRows(
    forget=[{"text": f"{SECRET} {number}", "label": "x"} for number in range(3)],
    retain=[{"text": f"stays {number}", "label": "y"} for number in range(4)],
)
CLIENTS = ("clinic", "hospital")


def trained(rig: Rig, *, epsilon: float | None = None, rounds: int = 2, **sections: Any) -> str:
    """A run with rounds of both clients, exported and signed at its end; its newest version."""
    run_id = submitted(rig, **sections)
    for number in range(1, rounds + 1):
        newest = play_round(rig, run_id, number, CLIENTS, epsilon=epsilon)
    exported(rig, newest)
    return newest


def exported(rig: Rig, digest: str) -> None:
    """Records a signed export, as the engine does when a run has finished."""
    version = rig.state.adapter(digest)
    files = {
        name: ExportedFile(sha256=rig.artifacts.put(content), size_bytes=len(content))
        for name, content in {"fedpeft.json": b'{"labels": ["x", "y"]}'}.items()
    }
    manifest = rig.manifests.sign(version, files)
    rig.state.set_export(digest, files, run_id=version.run_id, manifest_json=manifest)


def an_order(adapter: str, **other: Any) -> RemovalOrder:
    return RemovalOrder(
        **{"adapter": adapter, "client_id": "clinic", "num_records": len(ROWS.forget), **other}
    )


def asked(
    rig: Rig, adapter: str, by: str = "clinic", key: str | None = None, **other: Any
) -> Removal:
    """Asks for a removal; every call means other records, unless a digest is given."""
    digest = other.pop("records_digest", None) or records_digest(SALT, [{"n": next(_NUMBERS)}])
    return rig.connect(by).request_removal(
        an_order(adapter, **other), records_digest=digest, idempotency_key=key
    )


_NUMBERS = iter(range(10**9))
