"""What a client keeps: readable by its owner alone, one process at a time, one ledger for ever."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedpeft.errors import ConfigError, IdentityError, LedgerError
from fedpeft.ledger import Ledger
from fedpeft_client.policy import AllowedModel, ClientPolicy
from fedpeft_client.policy_file import allow_models, template
from fedpeft_client.state_folder import Enrolment, Membership, StateFolder, Status

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from fedpeft_client.state_folder import StateFolder

with StateFolder(Path(sys.argv[1])).running():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder.create(tmp_path / "above" / "client", template())


def membership(ledger: str) -> Membership:
    return Membership(
        client_id="clinic",
        federation="ab" * 32,
        server="localhost:7443",
        ledger=ledger,
        data="rows.jsonl",
        dataset="cd" * 32,
        num_rows=3,
    )


def test_nobody_else_can_read_it(folder: StateFolder) -> None:
    folder.join(membership("ledger.db"))
    folder.enrol(Enrolment.of("localhost:1", b"certificate", "ef" * 32))
    folder.report(Status())
    with folder.running():
        pass
    for path in (folder.path, *folder.path.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    folder.path.chmod(0o750)
    with pytest.raises(ConfigError, match=r"others can read .*; run: chmod 700"):
        StateFolder(folder.path)


def test_what_was_remembered_is_read_again(folder: StateFolder) -> None:
    assert (folder.membership(), folder.enrolment(), folder.status()) == (None, None, None)
    said = Enrolment.of("localhost:1", b"\x00certificate", "ef" * 32)
    folder.enrol(said)
    folder.join(membership("ledger.db"))
    folder.report(Status(activity="training", run_id="ab" * 8))
    again = StateFolder(folder.path)
    assert again.enrolment() == said
    assert said.certificate_der == b"\x00certificate"
    assert again.membership() == membership("ledger.db")
    status = again.status()
    assert status is not None
    assert status.activity == "training"
    assert again.node_key().private_numbers() == folder.node_key().private_numbers()


def test_damaged_files_are_no_new_beginning(folder: StateFolder) -> None:
    """A client that forgot its ledger would spend again; a status is for looking at only."""
    for name in ("membership.json", "enrolment.json", "status.json"):
        (folder.path / name).write_text('{"half": ', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"membership\.json is damaged"):
        folder.ledger_of(None)
    with pytest.raises(ConfigError, match=r"enrolment\.json is damaged"):
        folder.enrolment()
    assert folder.status() is None
    (folder.path / "node.key.pem").unlink()
    with pytest.raises(IdentityError):
        folder.node_key()


def test_a_folder_is_made_once(folder: StateFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already holds something"):
        StateFolder.create(folder.path, template())
    with pytest.raises(ConfigError, match="there is no client in"):
        StateFolder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir(mode=0o755)
    made = StateFolder.create(tmp_path / "empty", template())
    assert made.path.stat().st_mode & 0o777 == 0o700


def test_one_process_at_a_time(folder: StateFolder) -> None:
    assert not folder.is_running()
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert folder.is_running()
        with pytest.raises(ConfigError, match="is running already"), folder.running():
            pass
        holder.kill()
    assert not folder.is_running()
    with folder.running():
        assert folder.is_running()


def test_a_ledger_stays_the_same(folder: StateFolder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.db"
    assert folder.ledger_of(None) == str(folder.path / "ledger.db")
    assert folder.ledger_of(str(elsewhere)) == str(elsewhere)
    assert folder.ledger_of("postgresql://me@db/ledger") == "postgresql://me@db/ledger"
    Ledger.open(folder.ledger).close()
    folder.join(membership(str(folder.ledger)))
    assert folder.ledger_of(None) == folder.ledger_of(str(folder.ledger)) == str(folder.ledger)
    with pytest.raises(LedgerError, match="does not know what was spent"):
        folder.ledger_of(str(elsewhere))
    folder.ledger.unlink()
    with pytest.raises(LedgerError, match="what it has spent is not known"):
        folder.ledger_of(None)


def test_the_template_is_the_default_policy_with_every_key_explained(folder: StateFolder) -> None:
    assert ClientPolicy.read(folder.policy) == ClientPolicy()
    text = folder.policy.read_text(encoding="utf-8")
    for name, field in ClientPolicy.model_fields.items():
        assert f"# {name} = " in text or name == "base_models"
        assert (field.description or "").split(".")[0].split("→")[0].strip()[:40] in text.replace(
            "\n# ", " "
        )
    # Every default is what stands there, without the sign that keeps it out.
    lines = [line.removeprefix("# ") for line in text.splitlines() if " = " in line]
    values = [line for line in lines if line.split(" = ")[0] in ClientPolicy.model_fields]
    folder.policy.write_text("\n".join(v for v in values if "not set" not in v), encoding="utf-8")
    assert ClientPolicy.read(folder.policy) == ClientPolicy()


def test_base_models_are_added_and_what_the_owner_wrote_stays(folder: StateFolder) -> None:
    written = folder.policy.read_text(encoding="utf-8") + "\nmin_noise_multiplier = 0.9\n"
    folder.policy.write_text(written, encoding="utf-8")
    first, second = "ab" * 32, "cd" * 32
    model = AllowedModel(name='/models/with "quotes"')
    policy = allow_models(folder.policy, {first: model})
    assert (policy.base_models, policy.min_noise_multiplier) == ({first: model}, 0.9)
    policy = allow_models(folder.policy, {first: AllowedModel(name="other"), second: model})
    assert policy.base_models == {first: model, second: model}
    assert folder.policy.read_text(encoding="utf-8").startswith(written.rstrip())
    before = folder.policy.read_bytes()
    allow_models(folder.policy, {first: model})
    assert folder.policy.read_bytes() == before
    assert sorted(path.name for path in folder.path.iterdir()) == ["node.key.pem", "policy.toml"]


def test_a_policy_that_cannot_be_added_to_is_left_alone(folder: StateFolder) -> None:
    text = f"base_models = {{ {'ab' * 32} = {{ name = 'inline' }} }}\n"
    folder.policy.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"add them by hand:\n\[base_models\.cdcd"):
        allow_models(folder.policy, {"cd" * 32: AllowedModel(name="x")})
    assert folder.policy.read_text(encoding="utf-8") == text
