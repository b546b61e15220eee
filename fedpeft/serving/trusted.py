"""Exports that may be served: signed, unaltered, and made for the base model that is loaded."""

from pathlib import Path

from fedpeft.errors import AdapterError, VerificationError
from fedpeft.registry.folder import verified_folder
from fedpeft.registry.trust import RegistryTrust
from fedpeft.serving.adapter_files import AdapterFiles, read_adapter_files


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
    manifest, contents = verified_folder(folder, trust)
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
    files = read_adapter_files(contents)
    if files.digest != manifest.digest:
        raise VerificationError(
            f"the tensors in {folder} have digest {files.digest}, the manifest says "
            f"{manifest.digest}; export the version again"
        )
    return files
