"""Where a database is: a file, or a server."""

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from fedpeft.database.kind import DatabaseKind


def located(kind: DatabaseKind, location: str | Path) -> tuple[Path | None, URL | None]:
    """Returns a path, or the URL of a server; the other one is None.

    Raises:
        kind.refused: If it is neither, or the server's driver is not installed.
    """
    if isinstance(location, Path) or "://" not in location:
        return Path(location), None
    try:
        url = make_url(location)
    except ArgumentError as error:
        raise kind.refused(f"{location!r} is no database URL ({error})") from error
    if url.drivername == "sqlite":
        if url.database in (None, "", ":memory:") or url.query:
            raise kind.refused(
                f"a {kind.noun} needs a file: sqlite:///relative.db or sqlite:////full.db"
            )
        return Path(str(url.database)), None
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise kind.refused(
            f"a {kind.noun} lives in SQLite or PostgreSQL, not in {url.drivername!r}; give a path, "
            "or postgresql://USER@HOST/DATABASE"
        )
    url = url.set(drivername="postgresql+psycopg")
    try:
        url.get_dialect().import_dbapi()
    except (ImportError, NoSuchModuleError) as error:
        raise kind.refused(
            f"a {kind.noun} in PostgreSQL needs the driver: pip install 'fedpeft[postgresql]'"
        ) from error
    return None, url
