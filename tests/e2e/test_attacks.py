"""Attacks on a federation of real processes; docs/threats.md says where the others are tested."""

import importlib
import pkgutil
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

import fedpeft.wire.v1
from fedpeft.errors import EnrolmentError, RemoteError
from fedpeft.identity.roles import Role
from fedpeft.wire.v1 import clients_pb2
from fedpeft_client.fleet_node import FleetNode
from fedpeft_server.fleet.link import Link
from tests.e2e.federation import OPERATOR, Federation
from tests.e2e.planted import Mistake
from tests.fleet.parts import signed
from tests.server.holders import Holders
from tests.server.raw_calls import WIRE, channel, send, signature

_LEAKS = re.compile(r"Traceback|File \"|site-packages|\.py\b|/tmp/|/work/|/home/|sqlite|psycopg")
INVITE = f"{WIRE}Clients/InviteClient"
TEN_GB = 10 * 2**30


def methods(opened: Federation) -> list[str]:
    """Every method that the running server says it has, and every one of our proto files."""
    for module in pkgutil.iter_modules(fedpeft.wire.v1.__path__):
        importlib.import_module(f"fedpeft.wire.v1.{module.name}")
    with channel(opened, OPERATOR) as known:
        services = set(ProtoReflectionDescriptorDatabase(known).get_services())
    pool = descriptor_pool.Default()
    found: list[MethodDescriptor] = [
        method for name in services for method in pool.FindServiceByName(name).methods
    ]
    return [f"/{m.containing_service.full_name}/{m.name}" for m in found]


def check_no_leak(text: str, opened: Federation) -> None:
    assert _LEAKS.search(text) is None, text
    assert str(opened.folder) not in text
