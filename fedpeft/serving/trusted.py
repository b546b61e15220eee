"""Exports that may be served: signed, unaltered, and made for the base model that is loaded."""

import tempfile
from pathlib import Path

from fedpeft.errors import AdapterError, VerificationError
from fedpeft.registry.manifest import FILE_NAME, KIND, Manifest
from fedpeft.registry.trust import RegistryTrust
from fedpeft.serving.adapter_files import AdapterFiles, read_adapter_files

_LARGEST_FILE = 2**32


def read_trusted(
    folder: Path, trust: RegistryTrust, *, base_digest: str, digest: str | None = None
) -> AdapterFiles:
    """Reads an export with its signed manifest.

    Args:
        folder: What `fedpeft adapter export` wrote.
        trust: Whose signature is believed.
        base_digest: Of the base model that is loaded.
        digest: Of the version that is wanted; None: whichever it is.

    Raises:
        AdapterError: If it is no export, or is for another base model.
        VerificationError: If it is not signed, or is not what was signed.
    """
    contents = _contents(folder)
    document = contents.pop(FILE_NAME, None)
    if document is None:
        raise VerificationError(
            f"{folder} has no {FILE_NAME}: the version is not signed and is not served; export it "
            "with `fedpeft adapter export`"
        )
    manifest = Manifest.from_body(trust.verify(KIND, document.decode("utf-8", "replace")))
    manifest.check_files(contents)
    if digest is not None and manifest.digest != digest:
        raise VerificationError(
            f"expected version {digest}, got a manifest of version {manifest.digest}"
        )
    if manifest.base_digest != base_digest:
        raise AdapterError(
            f"version {manifest.digest[:12]} is for the base model {manifest.base_model} with "
            f"digest {manifest.base_digest}, the one loaded here has {base_digest}; serve it with "
            "--model for its own base model"
        )
    with tempfile.TemporaryDirectory() as scratch:
        # Read again from a copy: the folder may change between the check and the reading.
        for name, content in contents.items():
            Path(scratch, name).write_bytes(content)
        files = read_adapter_files(Path(scratch))
    if files.digest != manifest.digest:
        raise VerificationError(
            f"the tensors in {folder} have digest {files.digest}, the manifest says "
            f"{manifest.digest}; export the version again"
        )
    return files


def _contents(folder: Path) -> dict[str, bytes]:
    try:
        found = {}
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST_FILE:
                raise AdapterError(f"{path} is no file of an export; take it out of the folder")
            found[path.name] = path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{folder} cannot be read ({error.strerror})") from error
    return found
