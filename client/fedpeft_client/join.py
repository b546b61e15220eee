"""From what an owner asks for to a client that runs: `fedpeft client join`."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from fedpeft.errors import ConfigError, IdentityError
from fedpeft.identity.certificates import roles_of
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.roles import Role
from fedpeft.warm_worker import WarmWorker
from fedpeft_client.policy import AllowedModel, ClientPolicy
from fedpeft_client.policy_file import allow_models, template
from fedpeft_client.state_folder import Membership, StateFolder
from fedpeft_client.training import Account, ClientSetup, TrainingProcess


@dataclass(frozen=True, kw_only=True)
class JoinRequest:
    """What an owner asks for.

    Attributes:
        server: host or host:port.
        identity: Folder with key and certificates.
        state: The client's folder; it is made where there is none.
        data: Where the rows are.
        rows: Which of them; None: all.
        columns: Those that a row is known by; None: all.
        budget: Epsilon and delta to set; None: what is set already.
        ledger: File or URL; None: what was used before, or the folder's own.
        allow_models: Base models that the owner has and trusts.
    """

    server: str
    identity: Path
    state: Path
    data: str
    rows: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None
    budget: tuple[float, float] | None = None
    ledger: str | None = None
    allow_models: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Joining:
    """A client that could be made, before its rows were read.

    Attributes:
        request: What was asked for.
        credentials: Of the client.
        folder: Of the client.
        policy: Of its owner.
        setup: For the process that trains.
    """

    request: JoinRequest
    credentials: Credentials
    folder: StateFolder
    policy: ClientPolicy
    setup: ClientSetup

    @classmethod
    def of(cls, request: JoinRequest) -> "Joining":
        """Checks what can be checked without the server and the rows.

        Raises:
            IdentityError: If the certificate cannot be used, or is not a data owner's.
            ConfigError: If folder or policy cannot be used, or belong to another federation.
            LedgerError: If the ledger is another one than before, or is gone.
            ModelError: If a model to be allowed cannot be loaded.
        """
        credentials = Credentials.in_folder(request.identity)
        if Role.DATA_OWNER not in roles_of(credentials.certificate):
            raise IdentityError(
                f"the certificate of {credentials.name!r} is not that of a data owner; ask the "
                "operator for one with --role data-owner"
            )
        if request.state.is_dir() and any(request.state.iterdir()):
            folder = StateFolder(request.state)
        else:
            folder = StateFolder.create(request.state, template())
        _check_same(folder, credentials)
        policy = ClientPolicy.read(folder.policy)
        if request.allow_models:
            policy = allow_models(folder.policy, digests_of(tuple(request.allow_models)))
        setup = ClientSetup(
            client_id=credentials.name,
            folder=folder.updates,
            tombstones=folder.tombstones,
            ledger=folder.ledger_of(request.ledger),
            data=request.data,
            rows=request.rows,
            columns=request.columns,
            budget=request.budget,
            policy=policy,
        )
        return cls(
            request=request, credentials=credentials, folder=folder, policy=policy, setup=setup
        )

    def register(self, training: TrainingProcess) -> Account:
        """Reads the rows, makes them known to the ledger, and remembers what was joined.

        Raises:
            InputError: If rows or ledger cannot be used.
        """
        account = training.account(self.credentials.name)
        self.folder.join(
            Membership(
                client_id=self.credentials.name,
                federation=federation_of(self.credentials),
                server=self.request.server,
                ledger=self.setup.ledger,
                data=self.request.data,
                dataset=account.dataset,
                num_rows=account.num_rows,
                rows=self.request.rows,
                columns=self.request.columns,
            )
        )
        return account


def federation_of(credentials: Credentials) -> str:
    """Returns what tells one federation from another: the digest of its authority's certificate."""
    return hashlib.sha256(credentials.authority.public_bytes(Encoding.DER)).hexdigest()


@cache
def digests_of(names: tuple[str, ...]) -> Mapping[str, AllowedModel]:
    """Returns digest → model, for each task that each of the models can be loaded for.

    It takes seconds and another process; clients of one process ask once.

    Raises:
        ModelError: If one can be loaded for none.
    """
    worker = WarmWorker(partial(_BaseDigests), name="fedpeft model digest")
    try:
        found = {}
        for name in names:
            folder = Path(name).expanduser()
            place = str(folder.resolve()) if folder.is_dir() else name
            for digest in worker.call("of", place):
                found[digest] = AllowedModel(name=place)
        return found
    finally:
        worker.close()


class _BaseDigests:
    """Computes digests in a process of its own, which needs torch."""

    def of(self, name: str) -> list[str]:
        from fedpeft.models.base_digest import base_digests

        return list(base_digests(name).values())


def _check_same(folder: StateFolder, credentials: Credentials) -> None:
    before = folder.membership()
    if before is None:
        return
    if before.client_id != credentials.name:
        raise ConfigError(
            f"{folder.path} is the folder of client {before.client_id!r}, this is "
            f"{credentials.name!r}; name another folder with --state"
        )
    if before.federation != federation_of(credentials):
        raise ConfigError(
            f"{folder.path} belongs to the federation of another authority; name another folder "
            f"with --state, and the same ledger with --ledger {before.ledger}"
        )
