"""Adapter versions: listed, shown and downloaded."""

from collections.abc import Iterator

from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.wire.catalogue import Refused
from fedpeft.wire.v1 import adapters_pb2, adapters_pb2_grpc
from fedpeft_server.access.call import Call
from fedpeft_server.records import AdapterRecord
from fedpeft_server.services import fields, translate
from fedpeft_server.state import NotFoundError, State

_CHUNK_BYTES = 2**20
_RUN_ID_LENGTH = 16


class AdaptersService(adapters_pb2_grpc.AdaptersServicer):
    """See protos/fedpeft/wire/v1/adapters.proto."""

    def __init__(self, state: State, artifacts: ArtifactStore) -> None:
        """Takes where versions are recorded, and where their files are."""
        self._state, self._artifacts = state, artifacts

    def ListAdapters(
        self, request: adapters_pb2.ListAdaptersRequest, call: Call
    ) -> adapters_pb2.ListAdaptersResponse:
        """Returns the versions of one run, or of all."""
        run_id = fields.run_id(request.run_id) if request.run_id else None
        if run_id is not None:
            try:
                self._state.run(run_id)
            except NotFoundError as error:
                raise Refused.NO_SUCH_RUN.error(run_id) from error
        found = self._state.adapters(run_id)
        return adapters_pb2.ListAdaptersResponse(adapters=[translate.adapter(a) for a in found])

    def GetAdapter(
        self, request: adapters_pb2.GetAdapterRequest, call: Call
    ) -> adapters_pb2.Adapter:
        """Returns one version."""
        return translate.adapter(self._found(request.adapter, call))

    def DownloadAdapter(
        self, request: adapters_pb2.DownloadAdapterRequest, call: Call
    ) -> Iterator[adapters_pb2.AdapterChunk]:
        """Yields the files of a version's export."""
        adapter = self._found(request.adapter, call)
        if adapter.export is None:
            raise Refused.NOT_EXPORTED.error(adapter.digest)
        for name, file in sorted(adapter.export.items()):
            content = self._artifacts.get(file.sha256)
            yield adapters_pb2.AdapterChunk(
                name=name,
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                content=content[:_CHUNK_BYTES],
            )
            for start in range(_CHUNK_BYTES, len(content), _CHUNK_BYTES):
                yield adapters_pb2.AdapterChunk(content=content[start : start + _CHUNK_BYTES])

    def _found(self, name: str, call: Call) -> AdapterRecord:
        """The version of that digest; or, of a run's id, its newest."""
        name = fields.adapter(name)
        try:
            found = self._state.newest_adapter(name) if len(name) == _RUN_ID_LENGTH else None
            found = found or self._state.adapter(name)
        except NotFoundError as error:
            raise Refused.NO_SUCH_ADAPTER.error(name) from error
        call.about(found.digest, run_id=found.run_id, round=found.round)
        return found
