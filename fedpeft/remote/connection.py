"""Calls to a server, as one who holds a certificate of its federation."""

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedpeft.errors import InputError
from fedpeft.identity.credentials import Credentials
from fedpeft.remote import records, translate
from fedpeft.remote.address import ServerAddress
from fedpeft.remote.download import save_files
from fedpeft.remote.removal_calls import RemovalCalls
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

_AUDIT_PAGE = 1000


class Connection(RemovalCalls):
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
        super().__init__(server, credentials, timeout_s=timeout_s, patience_s=patience_s)
        self._runs = runs_pb2_grpc.RunsStub(self._signing)
        self._clients = clients_pb2_grpc.ClientsStub(self._signing)
        self._budgets = budgets_pb2_grpc.BudgetsStub(self._signing)
        self._adapters = adapters_pb2_grpc.AdaptersStub(self._signing)
        self._server = server_pb2_grpc.ServerStub(self._signing)

    # --- runs

    def submit_run(
        self,
        config: Mapping[str, Any],
        *,
        held_out: Path | None = None,
        start_from: str = "",
        idempotency_key: str | None = None,
    ) -> records.Run:
        """Submits a run. Operator.

        Args:
            config: What a run's TOML file holds.
            held_out: The file that `data.test` names, where it is on this machine.
            start_from: The version that it goes on from, as for `get_adapter`; empty: a fresh one.
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
            start_from=start_from,
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
        events = self._watch(
            lambda position: self._runs.WatchRun(
                runs_pb2.WatchRunRequest(run_id=run_id, after=position)
            ),
            after,
        )
        return map(translate.run_event, events)

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
