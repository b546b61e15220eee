"""Adapter versions: listed, shown, downloaded, deployed, withdrawn, taken in from elsewhere."""

import re
from collections.abc import Iterator

from fedpeft.errors import InputError, VerificationError
from fedpeft.ledger.chain import utc_now
from fedpeft.registry.artifacts import ArtifactStore
from fedpeft.wire.catalogue import Refused
from fedpeft.wire.v1 import adapters_pb2, adapters_pb2_grpc
from fedpeft_server.access.call import Call
from fedpeft_server.imports import Imports
from fedpeft_server.records import AdapterRecord, ReplicaRecord
from fedpeft_server.services import fields, translate
from fedpeft_server.state import NotFoundError, State, StateError, WrongStateError

_CHUNK_BYTES = 2**20
_DIGEST = re.compile(r"([0-9a-f]{64})?")
_REPLICA = re.compile(r"[0-9a-f]{16,64}")
_LONGEST_FINGERPRINT = 2**16


class AdaptersService(adapters_pb2_grpc.AdaptersServicer):
    """See protos/fedpeft/wire/v1/adapters.proto."""

    def __init__(self, state: State, artifacts: ArtifactStore, imports: Imports) -> None:
        """Takes where versions are recorded, where their files are, and what takes new ones in."""
        self._state, self._artifacts, self._imports = state, artifacts, imports

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
        found, aliases = self._state.adapters(run_id), self._state.aliases()
        return adapters_pb2.ListAdaptersResponse(
            adapters=[translate.adapter(a, aliases, manifest=False) for a in found]
        )

    def GetAdapter(
        self, request: adapters_pb2.GetAdapterRequest, call: Call
    ) -> adapters_pb2.Adapter:
        """Returns one version."""
        return translate.adapter(self._found(request.adapter, call), self._state.aliases())

    def DownloadAdapter(
        self, request: adapters_pb2.DownloadAdapterRequest, call: Call
    ) -> Iterator[adapters_pb2.AdapterChunk]:
        """Yields the files of a version's export; of a withdrawn one for those who audit alone."""
        adapter = self._found(request.adapter, call)
        if adapter.status == "withdrawn" and not call.sees_all_clients:
            raise Refused.WITHDRAWN.error(adapter.digest)
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

    def GetLineage(
        self, request: adapters_pb2.GetLineageRequest, call: Call
    ) -> adapters_pb2.Lineage:
        """Returns the relatives of a version; a data owner sees no other client's part."""
        found = self._found(request.adapter, call)
        aliases = self._state.aliases()
        return adapters_pb2.Lineage(
            versions=[
                translate.lineage_version(
                    adapter,
                    {c: d for c, d in self._state.cohort(adapter).items() if call.may_see(c)},
                    aliases,
                )
                for adapter in self._state.lineage(found.digest)
            ]
        )

    # --- what is in use

    def DeployAdapter(
        self, request: adapters_pb2.DeployAdapterRequest, call: Call
    ) -> adapters_pb2.Alias:
        """Points an alias at a version."""
        name, adapter = fields.alias(request.alias), self._found(request.adapter, call)
        if adapter.status == "withdrawn":
            raise Refused.WITHDRAWN.error(adapter.digest)
        if adapter.export is None:
            raise Refused.NOT_EXPORTED.error(adapter.digest)
        try:
            return translate.alias(self._state.set_alias(name, adapter, call.caller.name))
        except WrongStateError as error:
            raise Refused.WRONG_STATE.error(str(error)) from error

    def WithdrawAdapter(
        self, request: adapters_pb2.WithdrawAdapterRequest, call: Call
    ) -> adapters_pb2.Adapter:
        """Withdraws a version, for ever."""
        reason = fields.text("reason", request.reason)
        adapter = self._found(request.adapter, call)
        try:
            withdrawn = self._state.withdraw_adapter(adapter.digest, call.caller.name, reason)
        except WrongStateError as error:
            raise Refused.WRONG_STATE.error(str(error)) from error
        return translate.adapter(withdrawn, self._state.aliases())

    def ImportAdapter(
        self, request: adapters_pb2.ImportAdapterRequest, call: Call
    ) -> adapters_pb2.Adapter:
        """Takes in a version that was made elsewhere."""
        try:
            adapter = self._imports.take(
                {file.name: file.content for file in request.files},
                name=fields.text("name", request.name, required=True),
                base_model=fields.text("base_model", request.base_model, required=True),
                base_digest=request.base_digest,
                manifest_json=request.manifest_json,
                idempotency_key=fields.text(
                    "idempotency_key", request.idempotency_key, required=True
                ),
                by=call.caller.name,
            )
        except WrongStateError as error:
            raise Refused.WRONG_STATE.error(str(error)) from error
        except (InputError, VerificationError) as error:
            raise Refused.INVALID.error(str(error)) from error
        call.about(adapter.digest, run_id=adapter.run_id)
        return translate.adapter(adapter, self._state.aliases())

    def ListAliases(
        self, request: adapters_pb2.ListAliasesRequest, call: Call
    ) -> adapters_pb2.ListAliasesResponse:
        """Returns all aliases."""
        aliases = [translate.alias(alias) for alias in self._state.aliases()]
        return adapters_pb2.ListAliasesResponse(aliases=aliases)

    def GetAlias(self, request: adapters_pb2.GetAliasRequest, call: Call) -> adapters_pb2.Alias:
        """Returns where an alias points."""
        return self._alias(fields.alias(request.name))

    # --- who serves it

    def FollowAlias(
        self, request: adapters_pb2.FollowAliasRequest, call: Call
    ) -> adapters_pb2.Alias:
        """Records what a replica serves, and returns what it should."""
        name = fields.alias(request.alias)
        if _REPLICA.fullmatch(request.replica_id) is None:
            raise Refused.INVALID.error("a replica's id is 16 to 64 hex digits")
        if _DIGEST.fullmatch(request.adapter) is None:
            raise Refused.INVALID.error("a replica says the whole digest of what it serves")
        if len(request.fingerprint_json) > _LONGEST_FINGERPRINT:
            raise Refused.INVALID.error("a fingerprint is shorter")
        found = self._alias(name)
        try:
            self._state.report_replica(
                ReplicaRecord(
                    replica_id=request.replica_id,
                    alias=name,
                    adapter=request.adapter,
                    fingerprint_json=request.fingerprint_json,
                    problem=fields.text("problem", request.problem),
                    operated_by=call.caller.name,
                    reported_at=utc_now(),
                )
            )
        except StateError as error:
            raise Refused.BUSY.error(str(error)) from error
        return found

    def ListReplicas(
        self, request: adapters_pb2.ListReplicasRequest, call: Call
    ) -> adapters_pb2.ListReplicasResponse:
        """Returns the replicas of an alias, or of all."""
        alias = fields.alias(request.alias) if request.alias else None
        replicas = [translate.replica(replica) for replica in self._state.replicas(alias)]
        return adapters_pb2.ListReplicasResponse(replicas=replicas)

    def _alias(self, name: str) -> adapters_pb2.Alias:
        try:
            return translate.alias(self._state.alias(name))
        except NotFoundError as error:
            raise Refused.NO_SUCH_ALIAS.error(name) from error

    def _found(self, name: str, call: Call) -> AdapterRecord:
        """The version of that alias or digest; or, of a run's id, its newest."""
        try:
            found = self._state.named_adapter(fields.version(name))
        except NotFoundError as error:
            raise Refused.NO_SUCH_ADAPTER.error(name) from error
        call.about(found.digest, run_id=found.run_id, round=found.round)
        return found
