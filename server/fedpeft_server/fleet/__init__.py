"""Flower as transport, the server's side: an embedded SuperLink of which nodes see six methods."""

from fedpeft_server.fleet.bundle import Bundle, build_bundle
from fedpeft_server.fleet.config import FleetConfig
from fedpeft_server.fleet.fleet import Fleet
from fedpeft_server.fleet.grid import FleetGrid

__all__ = ["Bundle", "Fleet", "FleetConfig", "FleetGrid", "build_bundle"]
