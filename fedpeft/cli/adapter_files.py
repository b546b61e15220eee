"""`fedpeft adapter export|import|verify|diff`: versions as folders of files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpeft.cli.adapter_versions import AdapterArgument
from fedpeft.cli.remote_options import (
    IdentityOption,
    JsonOption,
    ServerOption,
    connect,
    echo_json,
    print_table,
)
from fedpeft.cli.remote_options import as_json as records_json
from fedpeft.errors import InputError, VerificationError
from fedpeft.files import write_text

if TYPE_CHECKING:
    from fedpeft.registry.trust import RegistryTrust

AuthorityOption = Annotated[
    Path | None,
    typer.Option(
        "--authority", metavar="FILE", help="Certificate of the federation's authority, in PEM."
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="Or the registry's public key, in PEM."),
]
_FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="What `fedpeft adapter export` wrote.")
]


def export(
    adapter: AdapterArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="New or empty folder.")],
    server: ServerOption = None,
    identity: IdentityOption = None,
) -> None:
    """Save a version in PEFT format, its signed manifest beside it; PEFT and vLLM load it."""
    from fedpeft.registry.manifest import FILE_NAME

    with connect(server, identity) as connection:
        found = connection.get_adapter(adapter)
        names = connection.download_adapter(found.digest, output)
    if found.manifest_json:
        write_text(output / FILE_NAME, found.manifest_json + "\n")
        names.append(FILE_NAME)
    for name in names:
        typer.echo(str(output / name))


def import_(
    folder: _FolderArgument,
    base_digest: Annotated[
        str,
        typer.Option("--base-digest", help="Of the base model: `fedpeft model digest` tells it."),
    ],
    base_model: Annotated[
        str, typer.Option("--base-model", help="As this server's runs call it. Default: as in it.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="What its run is called.")] = "",
    server: ServerOption = None,
    identity: IdentityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take in a version that was made elsewhere. Operator.

    Where the folder has a manifest, its signature and every file are checked by the server.
    """
    from fedpeft.registry.folder import read_folder

    contents, manifest_json = read_folder(folder)
    about = _about(contents)
    with connect(server, identity) as connection:
        found = connection.import_adapter(
            contents,
            name=name or folder.resolve().name,
            base_model=base_model or str(about.get("base_model", "")),
            base_digest=base_digest,
            manifest_json=manifest_json,
            idempotency_key=_key(contents, base_digest),
        )
    if as_json:
        echo_json(found)
        return
    typer.echo(f"adapter {found.digest}, run {found.run_id}")


def verify(
    folder: _FolderArgument,
    authority: AuthorityOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check an exported version offline: its signature, every file, the digest of its tensors."""
    from fedpeft.federated.exported import read_exported
    from fedpeft.registry.folder import verified_folder

    manifest, contents = verified_folder(folder, trust(authority, key))
    digest = read_exported(contents).digest
    if digest != manifest.digest:
        raise VerificationError(
            f"the tensors have digest {digest}, and the manifest is of {manifest.digest}"
        )
    if as_json:
        typer.echo(json.dumps(manifest.to_body(), indent=2, sort_keys=True))
        return
    typer.echo(
        f"adapter {manifest.digest}: the signature holds, and so do all {len(contents)} files"
    )


def diff(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="A folder of `adapter export`.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Another one.")],
    as_json: JsonOption = False,
) -> None:
    """Show by how much two exported versions differ, and what their manifests say differently.

    Manifests are not verified here: `fedpeft adapter verify`.
    """
    from fedpeft.federated.difference import difference
    from fedpeft.registry.folder import read_folder
    from fedpeft.registry.manifest_difference import manifest_difference
    from fedpeft.report.text import printable

    (files, manifest), (other_files, other_manifest) = read_folder(first), read_folder(second)
    found = difference(files, other_files)
    about = manifest_difference(manifest, other_manifest)
    if as_json:
        echo_json({"modules": records_json(found), "manifest": about})
        return
    rows = [
        (
            m.module,
            f"{m.first_norm:.4g}",
            f"{m.second_norm:.4g}",
            f"{m.change_norm:.4g}",
            f"{100 * m.share:.1f} %",
        )
        for m in found
    ]
    print_table(("module", "‖first‖", "‖second‖", "‖change‖", "of first"), rows)
    if all(m.change_norm == 0 for m in found):
        typer.echo("no module differs")
    if about:
        typer.echo()
        said = [(name, *map(printable, pair)) for name, pair in about.items()]
        print_table(("manifest", "first", "second"), said)


def trust(authority: Path | None, key: Path | None) -> "RegistryTrust":
    """Returns whose signatures are believed.

    Raises:
        InputError: If neither was given, or both.
        IdentityError: If the file cannot be read.
    """
    from fedpeft.identity.certificates import read_certificate
    from fedpeft.registry.trust import RegistryTrust

    if (authority is None) == (key is None):
        raise InputError(
            "name whom to believe: --authority with the federation's authority.cert.pem, or --key "
            "with the registry's public key"
        )
    if authority is not None:
        return RegistryTrust.of_authority(read_certificate(authority))
    assert key is not None
    try:
        return RegistryTrust.of_key(key.read_bytes())
    except OSError as error:
        raise InputError(f"{key} cannot be read ({error.strerror})") from error


def _about(contents: Mapping[str, bytes]) -> dict[str, Any]:
    from fedpeft.federated.export import MANIFEST_FILE

    try:
        found = json.loads(contents[MANIFEST_FILE])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"expected {MANIFEST_FILE} in the folder, as `fedpeft adapter export` writes it"
        ) from error
    return found if isinstance(found, dict) else {}


def _key(contents: Mapping[str, bytes], base_digest: str) -> str:
    """The same folder again is the same import."""
    sha = hashlib.sha256(base_digest.encode())
    for name in sorted(contents):
        sha.update(name.encode() + b"\0" + hashlib.sha256(contents[name]).digest())
    return sha.hexdigest()
