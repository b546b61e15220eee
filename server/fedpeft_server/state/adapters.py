"""Adapter versions and their lineage."""

from collections.abc import Mapping

from fedpeft_server.records import AdapterRecord, ExportedFile
from fedpeft_server.state.store import Store


class Adapters(Store):
    """The adapters' part of the state."""

    def start_adapter(self, adapter: AdapterRecord) -> None:
        """Records the version that a run starts from; the same again changes nothing.

        Args:
            adapter: Of round 0. Where it has a parent, that version's participants are its own too.

        Raises:
            NotFoundError: If there is no such run, or no such parent.
            WrongStateError: If the run started from another, or participants are left out.
        """
        raise NotImplementedError

    def adapters(self, run_id: str | None = None) -> list[AdapterRecord]:
        """Returns the versions of a run, or of all runs, oldest first."""
        raise NotImplementedError

    def adapter(self, digest_prefix: str) -> AdapterRecord:
        """Returns the version whose digest begins so; of several of one digest the newest.

        Raises:
            NotFoundError: If there is none, several digests begin so, or it is shorter than
                8 characters.
        """
        raise NotImplementedError

    def newest_adapter(self, run_id: str) -> AdapterRecord | None:
        """Returns the version of the last finished round, None before the run has any."""
        raise NotImplementedError

    def set_export(self, digest: str, files: Mapping[str, ExportedFile], *, run_id: str) -> None:
        """Records that a version was exported; again it replaces the files.

        Args:
            digest: Of the version; of several of the run the newest is meant.
            files: By plain name, without a folder.
            run_id: Whose version.

        Raises:
            NotFoundError: If the run has no such version.
            StateError: If a name could leave its folder, or there is no file.
        """
        raise NotImplementedError
