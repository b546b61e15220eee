"""A folder with an exported version and its signed manifest."""

from pathlib import Path

from fedpeft.errors import AdapterError, VerificationError
from fedpeft.registry.manifest import FILE_NAME, KIND, Manifest
from fedpeft.registry.trust import RegistryTrust

_MOST_FILES = 16


def read_folder(folder: Path) -> tuple[dict[str, bytes], str]:
    """Returns the files of an export, and its signed manifest, empty where there is none.

    Raises:
        AdapterError: If there is no such folder, it holds a folder, or far too many files.
    """
    try:
        paths = sorted(folder.iterdir())
        if len(paths) > _MOST_FILES + 1 or not all(path.is_file() for path in paths):
            raise AdapterError(
                f"{folder} is no exported adapter: expected at most {_MOST_FILES} files and no "
                "folder"
            )
        contents = {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise AdapterError(f"{folder} cannot be read ({error.strerror})") from error
    manifest = contents.pop(FILE_NAME, b"")
    return contents, manifest.decode("utf-8", errors="replace").strip()


def verified_folder(folder: Path, trust: RegistryTrust) -> tuple[Manifest, dict[str, bytes]]:
    """Returns the manifest of an export, and its files, checked against it.

    Raises:
        AdapterError: As for `read_folder`.
        VerificationError: If it is not signed by somebody who is believed, or a file is missing,
            of no version, or altered.
    """
    contents, document = read_folder(folder)
    if not document:
        raise VerificationError(
            f"{folder} has no {FILE_NAME}: the adapter is not signed; export it from a server"
        )
    manifest = Manifest.from_body(trust.verify(KIND, document))
    manifest.check_files(contents)
    return manifest, contents
