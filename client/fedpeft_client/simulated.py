"""Several clients of one process group on one machine: real identities, ledgers and letters.

ROOT/NAME/identity      key and certificates of a client
ROOT/NAME/state         its folder: policy, ledger, node key, updates
ROOT/simulate-operator  an operator's identity, where this machine holds the authority

All of them train in one process, which loads a base model once. They share nothing else: to the
server they are so many clients.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from fedpeft.errors import ConfigError
from fedpeft.identity.credentials import CERTIFICATE, REQUEST
from fedpeft.identity.folders import issue_into, request_in
from fedpeft.identity.roles import Role
from fedpeft.models.data_config import DataConfig
from fedpeft.models.partition import partition
from fedpeft.models.sources import read_table
from fedpeft.types import derive_seed
from fedpeft_client.join import JoinRequest

OPERATOR = "simulate-operator"
_DAYS = 365


def split_rows(
    data: str, how: str, *, num_clients: int, label_column: str, seed: int
) -> dict[str, tuple[int, ...]]:
    """Returns client → its rows; the same split gives the same rows again.

    Args:
        data: Where the rows are.
        how: 'iid', 'dirichlet:ALPHA' over the labels, or 'column:NAME'.
        num_clients: Number of clients.
        label_column: That 'dirichlet' is over.
        seed: Of the random splits.

    Raises:
        ConfigError: If `how` is something else.
        DataError: If file or column is not there, or there is no such split.
    """
    kind, _, value = how.partition(":")
    needed = {"iid": [], "dirichlet": [label_column], "column": [value]}
    about = {"dirichlet": {"dirichlet_alpha": value}, "column": {"partition_column": value}}
    content = {"train": data, "test": "held by the coordinator", "label_column": label_column}
    try:
        config = DataConfig.model_validate(
            content | {"partition": kind} | (about.get(kind, {}) if value else {})
        )
    except ValidationError as error:
        raise ConfigError(
            f"expected a partition such as iid, dirichlet:0.5 or column:NAME, got {how!r}"
        ) from error
    table = read_table(data, needed.get(kind, []))
    parts = partition(table, config, num_clients=num_clients, seed=derive_seed(seed, "partition"))
    return {name: tuple(rows) for name, rows in parts.items()}


def requests(
    rows: Mapping[str, tuple[int, ...]],
    *,
    server: str,
    root: Path,
    data: str,
    budget: tuple[float, float] | None,
    allow_models: Sequence[str],
) -> list[JoinRequest]:
    """Returns what each client asks for."""
    return [
        JoinRequest(
            server=server,
            identity=root / name / "identity",
            state=root / name / "state",
            data=data,
            rows=own,
            budget=budget,
            allow_models=allow_models,
        )
        for name, own in rows.items()
    ]


def make_identities(root: Path, names: Sequence[str], ca: Path | None) -> None:
    """Makes what is missing of the clients' identities, and an operator's to invite them with.

    Args:
        root: Folder of the clients.
        names: Of the clients.
        ca: The authority's folder; None: everybody must have a certificate already.

    Raises:
        ConfigError: If a certificate is missing and there is no authority to ask.
        IdentityError: If the authority does not grant one.
    """
    roles = dict.fromkeys(names, Role.DATA_OWNER) | ({OPERATOR: Role.OPERATOR} if ca else {})
    folders = {name: root / name / "identity" if name in names else root / name for name in roles}
    missing = [name for name, folder in folders.items() if not (folder / CERTIFICATE).is_file()]
    if not missing:
        return
    if ca is None:
        raise ConfigError(
            f"there is no certificate in {folders[missing[0]]} (nor for {len(missing) - 1} more); "
            "name the authority's folder with --ca, or issue them with `fedpeft pki`"
        )
    for name in missing:
        folder = folders[name]
        if not (folder / REQUEST).is_file():
            request_in(folder, name)
        issue_into(folder, folder / REQUEST, ca, [roles[name]], days=_DAYS)
