"""What needs a server: both ports, clocks, protocols, with real TLS."""

import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedpeft.identity.roles import Role
from fedpeft.remote.address import ServerAddress
from fedpeft_client.doctor.certificate import check_certificate
from fedpeft_client.doctor.clock import check_clock
from fedpeft_client.doctor.control_port import check_control_port
from fedpeft_client.doctor.finding import Finding, Grade
from fedpeft_client.doctor.fleet_port import check_fleet_port
from fedpeft_client.doctor.machine import Machine, Visit
from fedpeft_client.doctor.protocol import check_protocol
from fedpeft_client.state_folder import Enrolment, StateFolder
from tests.doctor.tls_port import closed_port, tls_port
from tests.server.control_rig import Rig, listening
from tests.server.holders import Holders

_Make = Callable[..., Machine]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with listening(tmp_path_factory.mktemp("server")) as opened:
        yield opened


@pytest.fixture
def make(rig: Rig) -> _Make:
    """A machine of the data owner "clinic"."""

    def make(*, port: int | None = None, holder: str = "clinic", **more: object) -> Machine:
        address = ServerAddress(host="localhost", port=port or rig.control.port)
        folder = rig.holders.folder / holder
        return Machine(**{"server": address, "identity": folder, **more})  # type: ignore[arg-type]

    return make


def _enrolled(folder: Path, port: int, host: str = "localhost") -> Path:
    made = StateFolder.create(folder, "")
    made.enrol(Enrolment.of(f"{host}:{port}", b"certificate", "bundle"))
    return folder


def _asked(machine: Machine, **changed: object) -> Machine:
    """The machine after a visit, with something else in the server's answer."""
    visit = machine.visit
    assert isinstance(visit, Visit)
    info = replace(visit.info, **changed)  # type: ignore[arg-type]
    vars(machine)["visit"] = replace(visit, info=info)
    return machine


def _shifted(by: timedelta) -> Callable[[], datetime]:
    return lambda: datetime.now(UTC) + by


def _failed(found: Finding, *words: str) -> None:
    assert found.grade is Grade.FAIL, found
    assert found.remedy
    for word in words:
        assert word in found.found


def test_a_server_that_answers(make: _Make) -> None:
    machine = make()
    found = check_control_port(machine)
    assert found.grade is Grade.OK, found
    assert "as 'clinic'" in found.found
    assert check_clock(machine).grade is Grade.OK
    assert check_protocol(machine).grade is Grade.OK


def test_a_closed_port(make: _Make) -> None:
    machine = make(port=closed_port())
    _failed(check_control_port(machine), "nothing listens there")
    for check in (check_clock, check_protocol, check_fleet_port):
        assert check(machine).grade is Grade.SKIPPED


def test_a_server_of_another_authority(make: _Make, tmp_path: Path) -> None:
    stranger = Holders(tmp_path, "another authority").issue("clinic", Role.DATA_OWNER)
    found = check_control_port(make(identity=stranger))
    _failed(found, "not issued by the authority that you trust")
    assert "clock" in found.remedy


def test_a_revoked_certificate(rig: Rig, make: _Make) -> None:
    rig.holders.issue("leaver", Role.DATA_OWNER)
    rig.holders.authority.revoke(rig.holders.serial("leaver"))
    _failed(check_control_port(make(holder="leaver")), "revoked")


def test_an_expired_certificate(rig: Rig, make: _Make) -> None:
    rig.holders.issue("sleeper", Role.DATA_OWNER)
    rig.holders.expire("sleeper")
    machine = make(holder="sleeper")
    _failed(check_certificate(machine), "expired on")
    assert check_control_port(machine).grade is Grade.SKIPPED


@pytest.mark.parametrize(
    ("whose", "days", "grade", "words"),
    [
        ("certificate", 31, Grade.OK, "'clinic', a data owner, until"),
        ("certificate", 29, Grade.WARN, "'clinic' expires on"),
        ("authority", 29, Grade.WARN, "the authority's certificate expires on"),
    ],
)
def test_how_long_a_certificate_holds(
    rig: Rig, make: _Make, whose: str, days: int, grade: Grade, words: str
) -> None:
    end = getattr(rig.holders.of("clinic"), whose).not_valid_after_utc
    found = check_certificate(make(now=lambda: end - timedelta(days=days)))
    assert (found.grade, words in found.found) == (grade, True), found


def test_a_certificate_without_the_role(make: _Make) -> None:
    found = check_certificate(make(holder="reader"))
    _failed(found, "the roles: reader")
    assert "--role data-owner" in found.remedy


def test_a_key_that_others_can_read(rig: Rig, make: _Make) -> None:
    (rig.holders.issue("careless", Role.DATA_OWNER) / "key.pem").chmod(0o644)
    _failed(check_certificate(make(holder="careless")), "others can read the private key")


@pytest.mark.parametrize(
    ("by_s", "grade", "words"),
    [
        (0, Grade.OK, "as the server's"),
        (10, Grade.OK, "s ahead of"),
        (120, Grade.WARN, "s ahead of"),
        (-120, Grade.WARN, "s behind"),
        (600, Grade.FAIL, "signed requests are refused"),
        (-600, Grade.FAIL, "signed requests are refused"),
    ],
)
def test_clocks(make: _Make, by_s: int, grade: Grade, words: str) -> None:
    found = check_clock(make(now=_shifted(timedelta(seconds=by_s))))
    assert (found.grade, words in found.found) == (grade, True), found


def test_a_slow_answer_is_not_a_wrong_clock(make: _Make) -> None:
    machine = make()
    visit = machine.visit
    assert isinstance(visit, Visit)
    slow = replace(
        visit,
        asked_at=visit.info.time - timedelta(minutes=10),
        answered_at=visit.info.time + timedelta(minutes=10),
    )
    vars(machine)["visit"] = slow
    assert check_clock(machine).grade is Grade.OK


@pytest.mark.parametrize(
    ("oldest", "newest", "remedy"),
    [(2, 3, "upgrade fedpeft on this machine"), (0, 0, "ask the operator to upgrade the server")],
)
def test_protocols_that_do_not_meet(make: _Make, oldest: int, newest: int, remedy: str) -> None:
    found = check_protocol(_asked(make(), oldest_protocol=oldest, newest_protocol=newest))
    _failed(found, f"the server {oldest} to {newest}")
    assert found.remedy == remedy


def test_the_fleet_port_that_the_server_names(rig: Rig, make: _Make) -> None:
    with tls_port(rig.holders.folder / "coordinator") as port:
        found = check_fleet_port(_asked(make(), fleet_address=f"localhost:{port}"))
    assert (found.grade, "TLSv1.3" in found.found) == (Grade.OK, True), found


def test_the_fleet_port_that_the_enrolment_names(rig: Rig, make: _Make, tmp_path: Path) -> None:
    with tls_port(rig.holders.folder / "coordinator") as port:
        found = check_fleet_port(make(server=None, state=_enrolled(tmp_path / "state", port)))
    assert found.grade is Grade.OK, found


def test_a_closed_fleet_port(make: _Make) -> None:
    port = closed_port()
    found = check_fleet_port(_asked(make(), fleet_address=f"localhost:{port}"))
    _failed(found, "cannot be reached")
    assert f"open TCP port {port}" in found.remedy


def test_a_fleet_port_of_somebody_else(make: _Make, tmp_path: Path) -> None:
    stranger = Holders(tmp_path, "another authority").server()
    with tls_port(stranger) as port:
        found = check_fleet_port(_asked(make(), fleet_address=f"localhost:{port}"))
    _failed(found, "not issued by the authority that you trust")


def test_a_fleet_port_under_another_name(rig: Rig, make: _Make) -> None:
    with tls_port(rig.holders.folder / "coordinator", "127.0.0.2") as port:
        found = check_fleet_port(_asked(make(), fleet_address=f"127.0.0.2:{port}"))
    _failed(found, "not for '127.0.0.2'")


def test_a_fleet_port_that_speaks_no_tls(make: _Make) -> None:
    machine = make()
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as plain:
        thread = threading.Thread(target=plain.serve_forever)
        thread.start()
        try:
            address = f"localhost:{plain.server_address[1]}"
            found = check_fleet_port(_asked(machine, fleet_address=address))
        finally:
            plain.shutdown()
            thread.join()
    _failed(found, "TLS handshake")
