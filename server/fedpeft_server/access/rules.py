"""The one table of who may call what. A method that is not in it cannot be called."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedpeft.identity.roles import Role


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Who may call a method, and what it does.

    Attributes:
        roles: One of them is needed.
        mutates: The request must be signed, and both the request and its outcome are audited.
        subject: Field of the request that names what it is about; empty where none does.
    """

    roles: frozenset[Role]
    mutates: bool = False
    subject: str = ""


_OPERATOR = frozenset({Role.OPERATOR})
_DATA_OWNER = frozenset({Role.DATA_OWNER})
_REMOVES = frozenset({Role.OPERATOR, Role.DATA_OWNER})
_AUDITS = frozenset({Role.OPERATOR, Role.AUDITOR})
# A data owner is told of itself alone.
_BY_CLIENT = _AUDITS | _DATA_OWNER
_ANYBODY = _BY_CLIENT | {Role.READER}

_OURS: Mapping[str, Rule] = {
    "Runs/SubmitRun": Rule(roles=_OPERATOR, mutates=True),
    "Runs/ListRuns": Rule(roles=_ANYBODY),
    "Runs/GetRun": Rule(roles=_ANYBODY, subject="run_id"),
    "Runs/WatchRun": Rule(roles=_ANYBODY, subject="run_id"),
    "Runs/StopRun": Rule(roles=_OPERATOR, mutates=True, subject="run_id"),
    "Runs/ResumeRun": Rule(roles=_OPERATOR, mutates=True, subject="run_id"),
    "Clients/InviteClient": Rule(roles=_OPERATOR, mutates=True, subject="client_id"),
    "Clients/EnrolClient": Rule(roles=_DATA_OWNER, mutates=True),
    "Clients/ListClients": Rule(roles=_BY_CLIENT),
    "Clients/RevokeClient": Rule(roles=_OPERATOR, mutates=True, subject="client_id"),
    "Budgets/ListBudgets": Rule(roles=_BY_CLIENT, subject="client_id"),
    "Adapters/ListAdapters": Rule(roles=_ANYBODY, subject="run_id"),
    "Adapters/GetAdapter": Rule(roles=_ANYBODY, subject="adapter"),
    "Adapters/DownloadAdapter": Rule(roles=_ANYBODY, subject="adapter"),
    "Adapters/GetLineage": Rule(roles=_ANYBODY, subject="adapter"),
    "Adapters/DeployAdapter": Rule(roles=_OPERATOR, mutates=True, subject="adapter"),
    "Adapters/WithdrawAdapter": Rule(roles=_OPERATOR, mutates=True, subject="adapter"),
    "Adapters/ImportAdapter": Rule(roles=_OPERATOR, mutates=True),
    "Adapters/ListAliases": Rule(roles=_ANYBODY),
    "Adapters/GetAlias": Rule(roles=_ANYBODY, subject="name"),
    # Every second, from every replica: signed or audited it would fill the log.
    "Adapters/FollowAlias": Rule(roles=_ANYBODY, subject="alias"),
    "Adapters/ListReplicas": Rule(roles=_AUDITS, subject="alias"),
    # A data owner for its own data alone; readers hear nothing of removals.
    "Removals/PlanRemoval": Rule(roles=_REMOVES, subject="client_id"),
    "Removals/RequestRemoval": Rule(roles=_REMOVES, mutates=True),
    "Removals/UploadRecords": Rule(roles=_REMOVES, mutates=True, subject="request_id"),
    # What a job at the client made, and was charged for, nobody else says.
    "Removals/SubmitSuccessor": Rule(roles=_DATA_OWNER, mutates=True, subject="request_id"),
    "Removals/ListRemovals": Rule(roles=_BY_CLIENT, subject="client_id"),
    "Removals/GetRemoval": Rule(roles=_BY_CLIENT, subject="request_id"),
    "Removals/WatchRemoval": Rule(roles=_BY_CLIENT, subject="request_id"),
    "Removals/CancelRemoval": Rule(roles=_REMOVES, mutates=True, subject="request_id"),
    "Removals/GetReceipt": Rule(roles=_BY_CLIENT, subject="request_id"),
    "Removals/GetJob": Rule(roles=_DATA_OWNER, subject="request_id"),
    "Server/GetServer": Rule(roles=_ANYBODY),
    "Server/ListAudit": Rule(roles=_AUDITS),
}

RULES: Mapping[str, Rule] = {
    **{f"/fedpeft.wire.v1.{name}": rule for name, rule in _OURS.items()},
    "/grpc.health.v1.Health/Check": Rule(roles=_ANYBODY),
    "/grpc.health.v1.Health/Watch": Rule(roles=_ANYBODY),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(roles=_ANYBODY),
}
"""Path of the method → rule."""


def sees_all_clients(roles: frozenset[Role]) -> bool:
    """Returns whether a caller is told of every client, and not of itself alone."""
    return bool(roles & _AUDITS)
