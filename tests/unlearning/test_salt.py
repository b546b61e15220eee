"""The salt: made once, readable by its owner alone, never replaced."""

import stat
import threading
from pathlib import Path

import pytest

from fedpeft.errors import InputError
from fedpeft.unlearning.records import SALT_BYTES
from fedpeft.unlearning.salt import salt_in


def test_a_salt_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "records.salt"
    made = salt_in(path)
    assert len(made) == SALT_BYTES
    assert salt_in(path) == made
    assert salt_in(tmp_path / "other.salt") != made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["records.salt"]


def test_those_who_make_it_at_once_have_the_same(tmp_path: Path) -> None:
    """Otherwise a receipt would be about a salt that is gone."""
    for number in range(20):
        path = tmp_path / f"{number}.salt"
        together = threading.Barrier(8)
        found: list[bytes] = []

        def make(path: Path = path, at: threading.Barrier = together) -> None:
            at.wait()
            found.append(salt_in(path))  # noqa: B023 - the threads end before the next number

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert set(found) == {salt_in(path)}


@pytest.mark.parametrize("content", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n0", "größe"])
def test_what_is_no_salt(tmp_path: Path, content: str) -> None:
    path = tmp_path / "records.salt"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(InputError, match="holds no salt"):
        salt_in(path)
    assert path.read_text() == content


def test_places_where_none_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "records.salt", Path("/proc/records.salt")):
        with pytest.raises(InputError, match="the salt"):
            salt_in(path)
