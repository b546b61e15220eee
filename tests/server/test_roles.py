"""Who may call what: every method with every kind of certificate, and with none."""

import grpc
import pytest

from fedpeft.identity.roles import Role
from fedpeft_server.access.rules import RULES
from tests.server.control_rig import ROLE_OF, Rig
from tests.server.raw_calls import WIRE, channel, send

HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/"

# Written out a second time: o operator, a auditor, d data owner, r reader; + changes something.
EXPECTED = {
    f"{WIRE}Runs/SubmitRun": "o+",
    f"{WIRE}Runs/ListRuns": "oadr",
    f"{WIRE}Runs/GetRun": "oadr",
    f"{WIRE}Runs/WatchRun": "oadr",
    f"{WIRE}Runs/StopRun": "o+",
    f"{WIRE}Runs/ResumeRun": "o+",
    f"{WIRE}Clients/InviteClient": "o+",
    f"{WIRE}Clients/EnrolClient": "d+",
    f"{WIRE}Clients/ListClients": "oad",
    f"{WIRE}Clients/RevokeClient": "o+",
    f"{WIRE}Budgets/ListBudgets": "oad",
    f"{WIRE}Adapters/ListAdapters": "oadr",
    f"{WIRE}Adapters/GetAdapter": "oadr",
    f"{WIRE}Adapters/DownloadAdapter": "oadr",
    f"{WIRE}Adapters/GetLineage": "oadr",
    f"{WIRE}Adapters/DeployAdapter": "o+",
    f"{WIRE}Adapters/WithdrawAdapter": "o+",
    f"{WIRE}Adapters/ImportAdapter": "o+",
    f"{WIRE}Adapters/ListAliases": "oadr",
    f"{WIRE}Adapters/GetAlias": "oadr",
    f"{WIRE}Adapters/FollowAlias": "oadr",
    f"{WIRE}Adapters/ListReplicas": "oa",
    f"{WIRE}Removals/PlanRemoval": "od",
    f"{WIRE}Removals/RequestRemoval": "od+",
    f"{WIRE}Removals/UploadRecords": "od+",
    f"{WIRE}Removals/SubmitSuccessor": "d+",
    f"{WIRE}Removals/ListRemovals": "oad",
    f"{WIRE}Removals/GetRemoval": "oad",
    f"{WIRE}Removals/WatchRemoval": "oad",
    f"{WIRE}Removals/CancelRemoval": "od+",
    f"{WIRE}Removals/GetReceipt": "oad",
    f"{WIRE}Removals/GetJob": "d",
    f"{WIRE}Server/GetServer": "oadr",
    f"{WIRE}Server/ListAudit": "oa",
    f"{HEALTH}Check": "oadr",
    f"{HEALTH}Watch": "oadr",
    f"{REFLECTION}ServerReflectionInfo": "oadr",
}
LETTERS = {
    "operator": "o",
    "auditor": "a",
    "clinic": "d",
    "reader": "r",
    "nobody": "-",
    "coordinator-2": "-",
}


@pytest.fixture(scope="module", autouse=True)
def _more_holders(rig: Rig) -> None:
    # An authority of one's own may give out what ours does not: a certificate without a role.
    rig.holders.issue_without_roles("nobody")
    rig.holders.issue_without_roles("coordinator-2", Role.SERVER)


def registered(rig: Rig) -> set[str]:
    """Methods that gRPC knows, whatever our table says."""
    return set(rig.control._server._state.registered_method_handlers)  # type: ignore[attr-defined]


def test_every_registered_method_has_a_rule(rig: Rig) -> None:
    assert registered(rig) == set(RULES) == set(EXPECTED)


def test_rules_are_the_expected_ones() -> None:
    of_letter = {LETTERS[name]: role for name, role in ROLE_OF.items() if name in LETTERS}
    for path, letters in EXPECTED.items():
        assert RULES[path].roles == {of_letter[letter] for letter in letters if letter != "+"}
        assert RULES[path].mutates == ("+" in letters)


@pytest.mark.parametrize("path", EXPECTED)
def test_a_method_is_for_its_roles_alone(rig: Rig, path: str) -> None:
    for name, letter in LETTERS.items():
        with channel(rig, name) as opened:
            if letter in EXPECTED[path]:
                assert first_answer(opened, path) != "not-allowed", name
            else:
                assert send(opened, path, b"").code == "not-allowed", name


def first_answer(opened: grpc.Channel, path: str) -> str:
    """Code of a call that is ended as soon as it was let in: some of them never end."""
    if path == f"{REFLECTION}ServerReflectionInfo" or path == f"{HEALTH}Watch":
        call = opened.unary_stream(path)(b"", timeout=20)
        next(call)
        call.cancel()
        return "ok"
    return send(opened, path, b"").code


def test_a_method_that_does_not_exist(rig: Rig) -> None:
    for name in ("operator", "nobody"):
        with channel(rig, name) as opened:
            assert send(opened, f"{WIRE}Runs/DropTables", b"").code == "unknown-method"
            assert send(opened, "/etc/passwd", b"").code == "unknown-method"


@pytest.mark.parametrize("path", EXPECTED)
def test_without_a_certificate_there_is_no_call_at_all(rig: Rig, path: str) -> None:
    trusting = grpc.ssl_channel_credentials(rig.holders.of("reader").authority_pem)
    with (
        grpc.secure_channel(rig.address, trusting) as tls,
        grpc.insecure_channel(rig.address) as plain,
    ):
        for opened in (tls, plain):
            with pytest.raises(grpc.RpcError) as refused:
                opened.unary_unary(path)(b"", timeout=20)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
