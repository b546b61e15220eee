"""An authority that is not ours, as docs/pki.md describes it, with OpenSSL's own program."""

import re
import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedpeft.errors import IdentityError
from fedpeft.identity.certificates import identify, read_certificate, read_revocations
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.roles import Role

DOCS = Path(__file__).parents[2] / "docs" / "pki.md"
AUTHORITY_KEYS = {
    "P-256": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "P-384": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"),
    "RSA": ("-newkey", "rsa:3072"),
}


def openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        ["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(params=AUTHORITY_KEYS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with an authority and its empty revocation list."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    openssl(
        tmp_path,
        *("req", "-x509", "-new", *AUTHORITY_KEYS[request.param], "-nodes", "-days", "30"),
        *("-keyout", "authority.key.pem", "-subj", "/CN=own", "-out", "authority.cert.pem"),
    )
    (tmp_path / "ca.cnf").write_text(
        "[ca]\ndefault_ca = own\n[own]\ndatabase = index.txt\ndefault_md = sha256\n"
        "crlnumber = crlnumber\ndefault_crl_days = 7\n"
    )
    (tmp_path / "index.txt").touch()
    (tmp_path / "crlnumber").write_text("01\n")
    write_list(tmp_path)
    return tmp_path


def write_list(folder: Path) -> None:
    files = ("-keyfile", "authority.key.pem", "-cert", "authority.cert.pem")
    openssl(folder, "ca", "-config", "ca.cnf", *files, "-gencrl", "-out", "revoked.crl.pem")


def issue_as_documented(folder: Path) -> None:
    """Runs the commands of the page as they stand there."""
    [block] = re.findall(r"```console\n(\$ openssl.*?)```", DOCS.read_text(), re.DOTALL)
    script = re.sub(r"^\$ ", "", block, flags=re.MULTILINE)
    done = subprocess.run(
        ["sh", "-e"], cwd=folder, input=script, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_pages_commands_make_a_holder(folder: Path) -> None:
    issue_as_documented(folder)
    found = Credentials.in_folder(folder)
    assert found.name == "clinic"
    identity = identify(
        found.certificate,
        read_certificate(folder / "authority.cert.pem"),
        read_revocations(folder / "revoked.crl.pem"),
        datetime.now(UTC),
    )
    assert identity.roles == {Role.DATA_OWNER}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")


def test_its_list_revokes_and_expires(folder: Path) -> None:
    issue_as_documented(folder)
    certificate = read_certificate(folder / "cert.pem")
    authority = read_certificate(folder / "authority.cert.pem")
    now = datetime.now(UTC)

    def check(at: datetime) -> str:
        revocations = read_revocations(folder / "revoked.crl.pem")
        return identify(certificate, authority, revocations, at).name

    assert check(now) == "clinic"
    with pytest.raises(IdentityError, match="the revocation list expired"):
        check(now + timedelta(days=8))
    files = ("-keyfile", "authority.key.pem", "-cert", "authority.cert.pem")
    openssl(folder, "ca", "-config", "ca.cnf", *files, "-revoke", "cert.pem")
    write_list(folder)
    with pytest.raises(IdentityError, match="was revoked"):
        check(now)
