"""Calls to a server: runs, clients, budgets, adapters and removals, from a program."""

from fedpeft.remote.address import ServerAddress
from fedpeft.remote.connection import Connection

__all__ = ["Connection", "ServerAddress"]
