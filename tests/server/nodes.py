"""Clients that come in, without a node that would train."""

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.server.control_rig import Rig


def node_key() -> bytes:
    """A new public key as a Flower node has one, PEM."""
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def invite(rig: Rig, name: str) -> str:
    """A token for a client."""
    return rig.connect("operator").invite_client(name, valid_hours=1).token


def enrol(rig: Rig, name: str, key: bytes | None = None) -> bytes:
    """Invites and enrols a client; its node's key."""
    key = key or node_key()
    rig.connect(name).enrol_client(key, token=invite(rig, name), version="0.1.0")
    return key
