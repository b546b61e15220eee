"""What a client keeps on its machine.

policy.toml       what its owner allows; see `policy`
ledger.db         what was spent on its rows, unless the ledger is somewhere else
membership.json   which federation it joined, with which rows and which ledger
enrolment.json    what the server said when it was enrolled
node.key.pem      key of its connection, made here
updates/          what it released; see `federated.client_store`
removals/         the same of private removal jobs, and what was asked of each job here
tombstones/       rows that are to be forgotten; see `federated.tombstones`
status.json       what it does, for `fedpeft client status`
running.lock      held while it runs

Nobody but its owner may read the folder: updates that were not sent yet, and the ledger, say more
of the rows than what leaves the machine.
"""

import base64
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, ValidationError

from fedpeft.errors import ConfigError, LedgerError
from fedpeft.file_lock import is_locked, locked
from fedpeft.files import make_private_folder, write_private_text
from fedpeft.identity.keys import new_key, read_key

_FORM = ConfigDict(frozen=True, extra="forbid")
_LOCK = "running.lock"
_PATIENCE_S = 1.0
_M = TypeVar("_M", bound=BaseModel)


class Membership(BaseModel):
    """Which federation the client joined, and with what.

    Attributes:
        client_id: Its name, as in its certificate.
        federation: sha256 of the certificate of the federation's authority.
        server: host:port that it joined.
        ledger: File or URL; all that it ever spent stands there.
        data: Where its rows are.
        dataset: Their fingerprint in the ledger.
        num_rows: Number of rows.
        rows: Which rows of the data are its own, counted from 0; None: all.
        columns: Those that a row is known by; None: all.
    """

    model_config = _FORM

    client_id: str
    federation: str
    server: str
    ledger: str
    data: str
    dataset: str
    num_rows: int
    rows: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None


class Enrolment(BaseModel):
    """What the server said when it enrolled the client.

    Attributes:
        fleet_address: host:port that the node connects to.
        server_certificate: DER, base64.
        bundle_digest: Of the app bundle that its messages come from.
    """

    model_config = _FORM

    fleet_address: str
    server_certificate: str
    bundle_digest: str

    @classmethod
    def of(cls, fleet_address: str, server_certificate: bytes, bundle_digest: str) -> Self:
        """Takes the certificate as DER."""
        return cls(
            fleet_address=fleet_address,
            server_certificate=base64.b64encode(server_certificate).decode("ascii"),
            bundle_digest=bundle_digest,
        )

    @property
    def certificate_der(self) -> bytes:
        """The server's certificate."""
        return base64.b64decode(self.server_certificate)


class LastUpdate(BaseModel):
    """The newest update that was sent, or was on its way."""

    model_config = _FORM

    run_id: str
    round: int
    at: str
    epsilon_spent: float | None


class Status(BaseModel):
    """What a client that runs says of itself.

    Attributes:
        activity: 'starting', 'waiting', 'training', 'stopping' or 'stopped'.
        connected: Whether the server can be reached.
        since: When one of the two changed last, UTC.
        pid: Of the process.
        run_id: Of the run that it works on, or worked on last.
        round: Of that run.
        num_rounds: Of that run.
        last_update: See `LastUpdate`.
        last_note: The newest thing that the owner should know, such as why a round was refused.
    """

    model_config = _FORM

    activity: str = "starting"
    connected: bool = False
    since: str = ""
    pid: int = 0
    run_id: str | None = None
    round: int | None = None
    num_rounds: int | None = None
    last_update: LastUpdate | None = None
    last_note: str | None = None


class StateFolder:
    """The folder of one client.

    Attributes:
        path: Where it is.
        policy: The owner's policy.
        ledger: Where the ledger is, unless it was put somewhere else.
        updates: What was released.
        removals: What was released by private removal jobs.
        tombstones: Which rows are to be forgotten.
    """

    def __init__(self, path: Path) -> None:
        """Opens a folder that exists.

        Raises:
            ConfigError: If there is none, or others can read it.
        """
        if not path.is_dir():
            raise ConfigError(f"there is no client in {path}; `fedpeft client init` makes one")
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"others can read {path}; run: chmod 700 {path}")
        path = path.resolve()
        self.path = path
        self.policy = path / "policy.toml"
        self.ledger = path / "ledger.db"
        self.updates = path / "updates"
        self.removals = path / "removals"
        self.tombstones = path / "tombstones"

    @classmethod
    def create(cls, path: Path, policy: str) -> Self:
        """Makes a folder with a policy and a key.

        Args:
            path: New or empty.
            policy: Text of the policy file.

        Raises:
            ConfigError: If there is something in it already.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path} already holds something; name a new folder")
        make_private_folder(path)
        path.chmod(0o700)
        folder = cls(path)
        new_key(path / "node.key.pem")
        write_private_text(folder.policy, policy)
        return folder

    def node_key(self) -> ec.EllipticCurvePrivateKey:
        """Returns the key of the client's connection.

        Raises:
            IdentityError: If it is gone, or others can read it.
        """
        return read_key(self.path / "node.key.pem")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Is held by the one process that is this client.

        Raises:
            ConfigError: If there is another one.
        """
        with ExitStack() as stack:
            try:
                # Whoever asks `is_running` at this moment is gone soon.
                stack.enter_context(locked(self.path / _LOCK, patience_s=_PATIENCE_S))
            except BlockingIOError as error:
                raise ConfigError(
                    f"the client in {self.path} is running already; stop it first"
                ) from error
            yield

    def is_running(self) -> bool:
        """Returns whether a process is this client, however the last one ended."""
        return is_locked(self.path / _LOCK)

    # --- what it remembers

    def membership(self) -> Membership | None:
        """Returns what was joined; None before the first time.

        Raises:
            ConfigError: If the file is damaged.
        """
        return self._read("membership.json", Membership)

    def join(self, membership: Membership) -> None:
        """Remembers what was joined."""
        write_private_text(self.path / "membership.json", membership.model_dump_json(indent=1))

    def ledger_of(self, asked: str | None) -> str:
        """Returns where the ledger is, and never another place than before.

        Args:
            asked: A file or URL; None: the one that was used before, or the folder's own.

        Raises:
            LedgerError: If another one was used before, or that is gone: a new one would forget
                what was spent.
        """
        before = self.membership()
        if asked is not None and "://" not in asked:
            asked = str(Path(asked).resolve())
        if before is None:
            return asked or str(self.ledger)
        if asked is not None and asked != before.ledger:
            raise LedgerError(
                f"this client's ledger is {before.ledger}, not {asked}: another one does not know "
                "what was spent; `fedpeft budget copy` moves a ledger"
            )
        if "://" not in before.ledger and not Path(before.ledger).is_file():
            raise LedgerError(
                f"this client's ledger {before.ledger} is missing, so what it has spent is not "
                "known; put it back from a backup"
            )
        return before.ledger

    def enrolment(self) -> Enrolment | None:
        """Returns what the server said; None before the first time.

        Raises:
            ConfigError: If the file is damaged.
        """
        return self._read("enrolment.json", Enrolment)

    def enrol(self, enrolment: Enrolment) -> None:
        """Remembers what the server said."""
        write_private_text(self.path / "enrolment.json", enrolment.model_dump_json(indent=1))

    def status(self) -> Status | None:
        """Returns what the client said of itself last; None where it never ran."""
        with suppress(ConfigError):
            return self._read("status.json", Status)
        return None

    def report(self, status: Status) -> None:
        """Says what the client does."""
        write_private_text(self.path / "status.json", status.model_dump_json(indent=1))

    def _read(self, name: str, kind: type[_M]) -> _M | None:
        path = self.path / name
        try:
            return kind.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is damaged: {str(error)[:200]}") from error


def default_root() -> Path:
    """Returns the folder of the folders of clients that were not put elsewhere."""
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "fedpeft" / "clients"
