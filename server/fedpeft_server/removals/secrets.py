"""The sealed records of a request: taken in once, opened for its job, destroyed after it."""

from fedpeft.errors import DataError, VerificationError
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.unlearning.records import JobRows
from fedpeft.unlearning.sealing import open_sealed
from fedpeft_server.records import RemovalRecord
from fedpeft_server.removals.planning import RETRAIN
from fedpeft_server.state import State
from fedpeft_server.state.removals import ENDED

_FEWEST_THAT_STAY = 2


def check_sealed(removal: RemovalRecord, sealed: bytes) -> None:
    """Opens records before they are stored, so that what no job could use is refused at once.

    Nothing of them is kept.

    Raises:
        VerificationError: If they cannot be opened with the request's key.
        DataError: If they are not the rows of such a request; the message quotes none.
    """
    if removal.job_private_key is None:
        raise VerificationError("the request takes no records")
    rows = JobRows.from_bytes(open_sealed(removal.job_private_key, removal.request_id, sealed))
    if len(rows.forget) != removal.num_records:
        raise DataError(
            f"{removal.num_records} records were announced and {len(rows.forget)} came; make a new "
            "request with the records that you mean"
        )
    if removal.method != RETRAIN and len(rows.retain) < _FEWEST_THAT_STAY:
        raise DataError(
            f"{removal.method} needs at least {_FEWEST_THAT_STAY} rows that stay, and "
            f"{len(rows.retain)} came; send more with --retain"
        )


def destroy(state: State, artifacts: ArtifactStore, request_id: str) -> None:
    """Deletes the sealed records of a request, then forgets their place and the job's key.

    Again it changes nothing; after a crash between the two it does the rest.

    Raises:
        NotFoundError: If there is no such request.
        UnavailableError: If the artifact store cannot be reached.
    """
    removal = state.removal(request_id)
    if removal.sealed is not None:
        artifacts.delete(removal.sealed)
    state.destroy_secrets(request_id)


def sweep(state: State, artifacts: ArtifactStore) -> list[str]:
    """Destroys what ended requests left behind when a coordinator was killed; their ids."""
    found = [r.request_id for r in state.removals_in(ENDED) if r.sealed is not None]
    for request_id in found:
        destroy(state, artifacts, request_id)
    return found
