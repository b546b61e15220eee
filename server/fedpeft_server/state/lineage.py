"""Who is in which round and which adapter version: one row per client, in the order given."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Table, and_, insert, select

_Key = tuple[str, int]


def add_clients(connection: Connection, table: Table, key: _Key, clients: Sequence[str]) -> None:
    """Writes the clients of one run and round."""
    run_id, number = key
    rows = [
        {"run_id": run_id, "round": number, "client_id": client, "position": position}
        for position, client in enumerate(clients)
    ]
    if rows:
        connection.execute(insert(table), rows)


def clients_by_round(
    connection: Connection, table: Table, owner: Table, *where: ColumnElement[bool]
) -> dict[_Key, tuple[str, ...]]:
    """Returns the clients by run and round, of those rows of `owner` that `where` admits."""
    same = and_(table.c.run_id == owner.c.run_id, table.c.round == owner.c.round)
    query = (
        select(table.c.run_id, table.c.round, table.c.client_id)
        .join(owner, same)
        .where(*where)
        .order_by(table.c.run_id, table.c.round, table.c.position)
    )
    found: dict[_Key, list[str]] = {}
    for run_id, number, client_id in connection.execute(query):
        found.setdefault((run_id, number), []).append(client_id)
    return {key: tuple(clients) for key, clients in found.items()}
