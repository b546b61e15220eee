"""The salt of whoever asks for removals: with it alone can records be told by their digest."""

import os
import re
import secrets
from pathlib import Path
from typing import Final

from fedpeft.errors import InputError
from fedpeft.files import make_private_folder, sync
from fedpeft.unlearning.records import SALT_BYTES

FILE: Final = "records.salt"
_HEX: Final = re.compile(rf"[0-9a-f]{{{2 * SALT_BYTES}}}")


def salt_in(path: Path) -> bytes:
    """Returns the salt that a file holds; makes one where there is no file.

    Keep the file: without it nobody can show that a receipt is about these records.

    Raises:
        InputError: If it cannot be read or made, others can read it, or it holds something else.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"the salt {path} cannot be read ({error.strerror})") from error
    try:
        make_private_folder(path.parent)
        _make(path)
    except FileExistsError:  # by another process, just now
        pass
    except OSError as error:
        raise InputError(
            f"the salt {path} cannot be made ({error.strerror}); name another place with --salt"
        ) from error
    return _read(path)


def _read(path: Path) -> bytes:
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if path.stat().st_mode & 0o077:
        raise InputError(f"others can read the salt {path}; run: chmod 600 {path}")
    if _HEX.fullmatch(text) is None:
        raise InputError(f"{path} holds no salt: {2 * SALT_BYTES} hex digits were expected")
    return bytes.fromhex(text)


def _make(path: Path) -> None:
    """Under its name it is there whole, and made once."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(SALT_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
    finally:
        partial.unlink()
    sync(path.parent)
