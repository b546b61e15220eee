"""Calls to a server, as one who holds a certificate of its federation."""

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from fedpeft.errors import InputError
from fedpeft.identity.credentials import Credentials
from fedpeft.remote import records, translate
from fedpeft.remote.address import ServerAddress
from fedpeft.remote.channel import SigningChannel, open_channel
from fedpeft.remote.download import save_files
from fedpeft.remote.explain import explain
from fedpeft.wire import serde
from fedpeft.wire.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    budgets_pb2,
    budgets_pb2_grpc,
    clients_pb2,
    clients_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_AUDIT_PAGE = 1000


class Connection:
    """A connection to a server; use it in a `with` block. Threads may share one.

    Every method raises

    - `RemoteError` where the server refuses, with a code of `fedpeft.wire.catalogue`,
    - `UnavailableError` where it cannot be reached, or cannot answer now; the message says why.

    Calls that change nothing when they are made twice are made again while the server is
    unavailable, for `patience_s`.
    """

    def __init__(
        self,
        server: str | ServerAddress,
        credentials: Credentials,
        *,
        timeout_s: float = 60.0,
        patience_s: float = 10.0,
    ) -> None:
        """Prepares the connection; the first call connects.

        Args:
            server: Such as "fed.example.org", "fed.example.org:7443". Its certificate must be for
                this host.
            credentials: Who calls.
            timeout_s: Of each call; streams have none.
            patience_s: How long calls are made again while the server is unavailable.
        """
        self.address = server if isinstance(server, ServerAddress) else ServerAddress.parse(server)
        self._credentials = credentials
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._channel = open_channel(self.address, credentials)
        signing = SigningChannel(self._channel, credentials, self.address.host)
        self._runs = runs_pb2_grpc.RunsStub(signing)
        self._clients = clients_pb2_grpc.ClientsStub(signing)
        self._budgets = budgets_pb2_grpc.BudgetsStub(signing)
        self._adapters = adapters_pb2_grpc.AdaptersStub(signing)
        self._server = server_pb2_grpc.ServerStub(signing)

    @classmethod
    def open(cls, server: str, identity: Path, **settings: float) -> Self:
        """Prepares a connection as the holder of a folder with key.pem, cert.pem and so on.

        Raises:
            IdentityError: If the folder does not hold them, or the certificate is not valid now.
            InputError: If the server's address cannot be read.
        """
        return cls(server, Credentials.in_folder(identity), **settings)

    def close(self) -> None:
        """Closes the connection; streams that are open end."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- runs

    def submit_run(
        self,
        config: Mapping[str, Any],
        *,
        held_out: Path | None = None,
        idempotency_key: str | None = None,
    ) -> records.Run:
        """Submits a run. Operator.

        Args:
            config: What a run's TOML file holds.
            held_out: The file that `data.test` names, where it is on this machine.
            idempotency_key: The same key again gives the same run; default: a new one.

        Raises:
            InputError: If the held-out file cannot be read.
        """
        content, suffix = b"", ""
        if held_out is not None:
            try:
                content, suffix = held_out.read_bytes(), held_out.suffix.lower()
            except OSError as error:
                raise InputError(f"{held_out} cannot be read ({error.strerror})") from error
        request = runs_pb2.SubmitRunRequest(
            config_json=json.dumps(config),
            held_out=content,
            held_out_suffix=suffix,
            idempotency_key=idempotency_key or uuid.uuid4().hex,
        )
        return translate.run(self._call(self._runs.SubmitRun, request))

    def list_runs(self) -> list[records.Run]:
        """Returns every run, oldest first."""
        found = self._call(self._runs.ListRuns, runs_pb2.ListRunsRequest())
        return [translate.run(entry) for entry in found.runs]

    def get_run(self, run_id: str) -> records.RunDetails:
        """Returns one run with its rounds, and with the participants that the caller may see."""
        request = runs_pb2.GetRunRequest(run_id=run_id)
        return translate.run_details(self._call(self._runs.GetRun, request))

    def watch_run(self, run_id: str, *, after: int = 0) -> Iterator[records.RunEvent]:
        """Yields what happened in a run, then what happens, until it has ended.

        A connection that breaks is made again where it was, for `patience_s` at a time.

        Args:
            run_id: The run.
            after: Events after this position.
        """
        retry = _Retry(self._patience_s)
        while True:
            stream = self._runs.WatchRun(runs_pb2.WatchRunRequest(run_id=run_id, after=after))
            try:
                for event in stream:
                    retry = _Retry(self._patience_s)
                    after = event.position
                    yield translate.run_event(event)
            except grpc.RpcError as error:
                self._pause_or_raise(error, retry)
            else:
                return
            finally:
                stream.cancel()

    def stop_run(self, run_id: str, reason: str = "") -> records.Run:
        """Stops a run. Operator. What clients were charged for stays charged."""
        request = runs_pb2.StopRunRequest(run_id=run_id, reason=reason)
        return translate.run(self._call(self._runs.StopRun, request))

    def resume_run(self, run_id: str) -> records.Run:
        """Goes on with a stopped or failed run. Operator."""
        request = runs_pb2.ResumeRunRequest(run_id=run_id)
        return translate.run(self._call(self._runs.ResumeRun, request, repeatable=False))

    # --- clients

    def invite_client(self, client_id: str, *, valid_hours: int = 72) -> records.Invitation:
        """Makes a token that the named client can enrol with once. Operator."""
        request = clients_pb2.InviteClientRequest(client_id=client_id, valid_hours=valid_hours)
        made = self._call(self._clients.InviteClient, request, repeatable=False)
        return records.Invitation(token=made.token, expires_at=translate.time(made.expires_at))

    def enrol_client(
        self, node_public_key: bytes, *, token: str, version: str
    ) -> records.Enrolment:
        """Enrols the caller as a client. Data owner.

        Args:
            node_public_key: Of its Flower node, PEM.
            token: From an invitation; may be empty where this key is enrolled already.
            version: Of its fedpeft.
        """
        request = clients_pb2.EnrolClientRequest(
            token=token,
            node_public_key=node_public_key,
            protocol=serde.PROTOCOL,
            version=version,
        )
        found = self._call(self._clients.EnrolClient, request)
        return translate.enrolment(found, self.address.host)

    def list_clients(self) -> list[records.Client]:
        """Returns the clients that the caller may see, by name."""
        found = self._call(self._clients.ListClients, clients_pb2.ListClientsRequest())
        return [translate.client(entry) for entry in found.clients]

    def revoke_client(self, client_id: str, reason: str) -> records.Client:
        """Takes a client out, with its open connections. Operator."""
        request = clients_pb2.RevokeClientRequest(client_id=client_id, reason=reason)
        return translate.client(self._call(self._clients.RevokeClient, request))

    # --- budgets and adapters

    def list_budgets(self, client_id: str = "") -> list[records.MirroredBudget]:
        """Returns budgets as clients last reported them: a client's, or all the caller may see."""
        request = budgets_pb2.ListBudgetsRequest(client_id=client_id)
        found = self._call(self._budgets.ListBudgets, request)
        return [translate.budget(entry) for entry in found.budgets]

    def list_adapters(self, run_id: str = "") -> list[records.Adapter]:
        """Returns the adapter versions of a run, or of all runs, oldest first."""
        request = adapters_pb2.ListAdaptersRequest(run_id=run_id)
        found = self._call(self._adapters.ListAdapters, request)
        return [translate.adapter(entry) for entry in found.adapters]

    def get_adapter(self, adapter: str) -> records.Adapter:
        """Returns a version by an alias, 8 leading digits of its digest, or a run's newest one."""
        request = adapters_pb2.GetAdapterRequest(adapter=adapter)
        return translate.adapter(self._call(self._adapters.GetAdapter, request))

    def download_adapter(self, adapter: str, folder: Path) -> list[str]:
        """Saves a version in PEFT format.

        Args:
            adapter: As for `get_adapter`.
            folder: New, or empty.

        Returns:
            The names of its files, each checked against the sha256 that the server announced.

        Raises:
            InputError: If the folder holds something already.
            VerificationError: If a file is not what was announced; nothing is left behind.
        """
        request = adapters_pb2.DownloadAdapterRequest(adapter=adapter)
        return save_files(self._stream(self._adapters.DownloadAdapter, request), folder)

    def lineage(self, adapter: str) -> list[records.LineageVersion]:
        """Returns what a version was made from, itself, and what was made from it, by age."""
        request = adapters_pb2.GetLineageRequest(adapter=adapter)
        found = self._call(self._adapters.GetLineage, request)
        return [translate.lineage_version(entry) for entry in found.versions]

    def deploy_adapter(self, adapter: str, alias: str) -> records.Alias:
        """Points an alias at a version. Operator."""
        request = adapters_pb2.DeployAdapterRequest(adapter=adapter, alias=alias)
        return translate.alias(self._call(self._adapters.DeployAdapter, request))

    def withdraw_adapter(self, adapter: str, reason: str = "") -> records.Adapter:
        """Withdraws a version, for ever. Operator."""
        request = adapters_pb2.WithdrawAdapterRequest(adapter=adapter, reason=reason)
        return translate.adapter(self._call(self._adapters.WithdrawAdapter, request))

    def import_adapter(
        self,
        files: Mapping[str, bytes],
        *,
        name: str,
        base_model: str,
        base_digest: str,
        manifest_json: str = "",
        idempotency_key: str | None = None,
    ) -> records.Adapter:
        """Takes in a version that was made elsewhere. Operator.

        Args:
            files: Of the PEFT format and what `adapter export` writes beside it, by plain name.
            name: What its run is called.
            base_model: As this server's operators call it.
            base_digest: Of its tensors; `fedpeft model digest` tells it.
            manifest_json: Signed, as `adapter export` wrote it; empty where there is none.
            idempotency_key: The same one again gives the same version.
        """
        request = adapters_pb2.ImportAdapterRequest(
            name=name,
            base_model=base_model,
            base_digest=base_digest,
            files=[
                adapters_pb2.AdapterFile(name=file, content=content)
                for file, content in files.items()
            ],
            manifest_json=manifest_json,
            idempotency_key=idempotency_key or uuid.uuid4().hex,
        )
        return translate.adapter(self._call(self._adapters.ImportAdapter, request))

    def list_aliases(self) -> list[records.Alias]:
        """Returns all aliases, by name."""
        found = self._call(self._adapters.ListAliases, adapters_pb2.ListAliasesRequest())
        return [translate.alias(entry) for entry in found.aliases]

    def get_alias(self, name: str) -> records.Alias:
        """Returns where an alias points."""
        request = adapters_pb2.GetAliasRequest(name=name)
        return translate.alias(self._call(self._adapters.GetAlias, request))

    def follow_alias(
        self,
        alias: str,
        replica_id: str,
        *,
        adapter: str = "",
        fingerprint_json: str = "",
        problem: str = "",
    ) -> records.Alias:
        """Says what a replica serves, and returns what it should serve.

        Args:
            alias: That it follows.
            replica_id: Random, of the process; 16 to 64 hex digits.
            adapter: Digest of the version that answers requests now; empty while there is none.
            fingerprint_json: Of its outputs; see `fedpeft.registry.fingerprint`.
            problem: Why the version that it should serve is not served, on one line.
        """
        request = adapters_pb2.FollowAliasRequest(
            alias=alias,
            replica_id=replica_id,
            adapter=adapter,
            fingerprint_json=fingerprint_json,
            problem=problem,
        )
        return translate.alias(self._call(self._adapters.FollowAlias, request))

    def list_replicas(self, alias: str = "") -> list[records.Replica]:
        """Returns the replicas of an alias, or of all, also those that are gone."""
        request = adapters_pb2.ListReplicasRequest(alias=alias)
        found = self._call(self._adapters.ListReplicas, request)
        return [translate.replica(entry) for entry in found.replicas]

    # --- the server

    def get_server(self) -> records.ServerInfo:
        """Returns what the server says of itself and of the caller."""
        found = self._call(self._server.GetServer, server_pb2.GetServerRequest())
        return translate.server_info(found, self.address.host)

    def audit(self, *, after: int = 0) -> Iterator[records.AuditEntry]:
        """Yields the server's audit log, oldest first. Auditor or operator.

        Args:
            after: Entries after this position.
        """
        while True:
            request = server_pb2.ListAuditRequest(after=after, limit=_AUDIT_PAGE)
            entries = self._call(self._server.ListAudit, request).entries
            if not entries:
                return
            for entry in entries:
                after = entry.position
                yield translate.audit_entry(entry)

    def _call(self, method: Callable[..., Any], request: object, *, repeatable: bool = True) -> Any:
        retry = _Retry(self._patience_s if repeatable else 0.0)
        while True:
            try:
                return method(request, timeout=self._timeout_s)
            except grpc.RpcError as error:
                self._pause_or_raise(error, retry)

    def _stream(self, method: Callable[..., Any], request: object) -> Iterator[Any]:
        stream = method(request)
        try:
            yield from stream
        except grpc.RpcError as error:
            self._pause_or_raise(error, _Retry(0.0))
        finally:
            stream.cancel()

    def _pause_or_raise(self, error: grpc.RpcError, retry: "_Retry") -> None:
        found = explain(error, self.address, self._credentials)
        if not (found.may_pass and retry.pause()):
            raise found.error from error


class _Retry:
    """Longer and longer pauses, until patience is at its end."""

    def __init__(self, patience_s: float) -> None:
        self._until = time.monotonic() + patience_s
        self._pause_s = _FIRST_PAUSE_S

    def pause(self) -> bool:
        """Waits; returns False at once where there is no more time for it."""
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        if time.monotonic() + pause_s > self._until:
            return False
        time.sleep(pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return True
