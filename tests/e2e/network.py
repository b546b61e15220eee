"""Hosts in network namespaces of their own, on one switch; a host can be cut off."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.e2e.federation import Host

_numbers = itertools.count()
_NET = "10.213.77"
_HERE = 254


@dataclass(frozen=True, kw_only=True)
class Network:
    """Namespaces by the name of their host; this machine has a cable to the switch as well."""

    label: str
    hosts: dict[str, Host]

    def cut(self, name: str) -> None:
        """Pulls a host's cable out of the switch: nothing comes through, and nobody is told."""
        self._port(name, "down")

    def mend(self, name: str) -> None:
        """Puts it back."""
        self._port(name, "up")

    def _port(self, name: str, state: str) -> None:
        _ip("-n", f"{self.label}-switch", "link", "set", f"to-{name}", state)


@contextmanager
def network(*names: str) -> Iterator[Network]:
    """Makes hosts with an address each; nothing of it is left when the block ends."""
    _check_allowed()
    label = f"fedpeft-{os.getpid()}-{next(_numbers)}"
    switch, cable = f"{label}-switch", f"fp{os.getpid()}"
    spaces = [switch, *(f"{label}-{name}" for name in names)]
    try:
        for space in spaces:
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        hosts = {}
        for number, name in enumerate(names, start=1):
            space = f"{label}-{name}"
            _connect(switch, f"to-{name}", "eth0", ("-n", space), f"{_NET}.{number}/24")
            hosts[name] = Host(address=f"{_NET}.{number}", prefix=("ip", "netns", "exec", space))
        _connect(switch, "to-here", cable, (), f"{_NET}.{_HERE}/24")
        yield Network(label=label, hosts=hosts)
    finally:
        # With its namespace goes one end of a cable, and with it the other.
        for space in spaces:
            _ip("netns", "del", space, check=False)


def _connect(switch: str, port: str, end: str, place: Sequence[str], address: str) -> None:
    """Lays a cable from the switch to the place and gives its end there an address."""
    peer = ["peer", "name", end, *(["netns", place[1]] if place else ["netns", str(os.getpid())])]
    _ip("-n", switch, "link", "add", port, "type", "veth", *peer)
    _ip("-n", switch, "link", "set", port, "master", "switch", "up")
    _ip(*place, "addr", "add", address, "dev", end)
    _ip(*place, "link", "set", end, "up")


def _check_allowed() -> None:
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces: iproute2 is not installed")
    probe = f"fedpeft-probe-{os.getpid()}"
    if os.geteuid() != 0 or _ip("netns", "add", probe, check=False) != 0:
        pytest.skip("no network namespaces: making them needs root and CAP_NET_ADMIN")
    _ip("netns", "del", probe)


def _ip(*arguments: str, check: bool = True) -> int:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert not (check and done.returncode), f"ip {' '.join(arguments)}: {done.stderr}"
    return done.returncode
