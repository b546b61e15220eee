"""The audit log: who asked for what, and what came of it; entries are chained by hash."""

from collections.abc import Mapping

from fedpeft.ledger.chain import Head
from fedpeft_server.records import AuditRecord, JsonValue
from fedpeft_server.state.store import Store

_NOTHING: Mapping[str, JsonValue] = {}


class Audit(Store):
    """The audit log's part of the state."""

    def append_audit(
        self,
        actor: str,
        action: str,
        subject: str,
        outcome: str,
        detail: Mapping[str, JsonValue] = _NOTHING,
    ) -> AuditRecord:
        """Writes the next entry.

        Ids, codes, digests and numbers belong in it. Text that is longer than 200 characters or
        not printable is left out, so that neither a row nor a key gets in by accident.

        Args:
            actor: The name in a certificate, or a part of the server.
            action: What was asked.
            subject: On what.
            outcome: `ok`, or the code of the refusal.
            detail: What else; floats are written as text.
        """
        raise NotImplementedError

    def audit(self, after: int = 0, limit: int = 1000) -> list[AuditRecord]:
        """Returns at most `limit` entries beyond position `after`, oldest first.

        Raises:
            VerificationError: If one of them is not what was once written.
        """
        raise NotImplementedError

    def audit_head(self) -> Head:
        """Returns the number of entries and the last one's hash, to be kept elsewhere."""
        raise NotImplementedError

    def verify_audit(self, expected_head: Head | None = None) -> Head:
        """Checks every entry and returns the head.

        Args:
            expected_head: A head that was kept elsewhere; only against it do entries show that
                were cut off at the end.

        Raises:
            VerificationError: If anything is wrong; it names the first entry that is.
        """
        raise NotImplementedError
