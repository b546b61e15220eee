"""The one transaction in which a removal takes effect: all of it, or nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from fedpeft_server.records import (
    AdapterRecord,
    AliasRecord,
    RemovalRecord,
    RemovalState,
    RunRecord,
)
from fedpeft_server.removals import events
from fedpeft_server.state import adapters, aliases, audit, finished, removals, withdrawals
from fedpeft_server.state.errors import WrongStateError
from fedpeft_server.state.store import Store


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is published.

    Attributes:
        request_id: The removal.
        successor: The version that takes the place of the affected ones, with its export.
        run: That it is recorded under; None where rounds made it, and it is recorded already.
        manifest_json: Of the successor, signed.
        affected: Digests of the versions that are withdrawn.
        receipt_json: Signed.
        receipt_digest: sha256 of the receipt.
    """

    request_id: str
    successor: AdapterRecord
    run: RunRecord | None
    manifest_json: str
    affected: tuple[str, ...]
    receipt_json: str
    receipt_digest: str


class Publications(Store):
    """The publications' part of the state."""

    def publish_removal(
        self, request_id: str, make: Callable[[], Publication]
    ) -> Publication | None:
        """Records the successor, moves the aliases, withdraws what was affected, ends the request.

        Call `tell_removals` after it.

        Args:
            request_id: The removal.
            make: Puts together what is published. It is called while nobody else can write: what
                it reads is still so when it takes effect, so that no alias is deployed and no
                version is made of which its receipt says nothing. It must not write.

        Returns:
            What was published; None where it was published before, and nothing changes.

        Raises:
            NotFoundError: If there is no such request or version.
            WrongStateError: If it is not being verified, or a version that it starts from, or the
                successor, was withdrawn meanwhile.
        """
        with self._database.writing() as connection:
            removal = removals.known(connection, request_id)
            if removal.state is RemovalState.PUBLISHED:
                return None
            named = adapters.version(connection, removal.run_id, removal.round)
            assert named is not None
            if named.status == "withdrawn":
                raise WrongStateError(
                    f"adapter {named.digest[:12]} was withdrawn by {named.withdrawn_by} while a "
                    "successor of it was made; the job begins again"
                )
            publication = make()
            assert publication.request_id == request_id
            moved = _take_effect(connection, removal, named, publication)
            published = removals.advance(
                connection,
                removal.request_id,
                RemovalState.PUBLISHED,
                expected=(RemovalState.VERIFYING,),
                successor=publication.successor.digest,
                receipt_json=publication.receipt_json,
            )
            body = {
                "adapter": publication.successor.digest,
                "withdrawn": list(publication.affected),
                "aliases": [alias.name for alias in moved],
                "receipt": publication.receipt_digest,
            }
            removals.add_event(connection, removal.request_id, events.PUBLISHED, body)
            state = {"state": published.state.value, "reason": ""}
            removals.add_event(connection, removal.request_id, events.STATE, state)
            audit.append(
                connection,
                actor=removal.requested_by,
                action="removal",
                subject=removal.request_id,
                outcome="ok",
                detail={
                    "method": removal.method,
                    "successor": publication.successor.digest,
                    "withdrawn": list(publication.affected),
                    "receipt": publication.receipt_digest,
                },
            )
        return publication


def _take_effect(
    connection: Connection, removal: RemovalRecord, named: AdapterRecord, publication: Publication
) -> list[AliasRecord]:
    successor = publication.successor
    if publication.run is not None:
        finished.add_finished(
            connection,
            publication.run,
            successor,
            publication.manifest_json,
            removal.request_id,
            removal.requested_by,
            parent=named,
        )
    recorded = adapters.version(connection, successor.run_id, successor.round)
    assert recorded is not None
    if recorded.status == "withdrawn":
        raise WrongStateError(
            f"adapter {recorded.digest[:12]}, the successor, was withdrawn by "
            f"{recorded.withdrawn_by}, and is put in no other's place"
        )
    moved = aliases.move(connection, publication.affected, recorded, removal.requested_by)
    withdrawals.withdraw(connection, publication.affected, removal.request_id)
    return moved
