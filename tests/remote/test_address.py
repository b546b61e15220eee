"""How a server is named."""

import pytest

from fedpeft.errors import InputError
from fedpeft.remote import ServerAddress


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("fed.example.org", "fed.example.org", 7443, "fed.example.org:7443"),
        ("Fed.Example.ORG:80", "fed.example.org", 80, "fed.example.org:80"),
        ("127.0.0.1:1", "127.0.0.1", 1, "127.0.0.1:1"),
        ("::1", "::1", 7443, "[::1]:7443"),
        ("[::1]", "::1", 7443, "[::1]:7443"),
        ("[fe80::1]:65535", "fe80::1", 65535, "[fe80::1]:65535"),
    ],
)
def test_addresses(text: str, host: str, port: int, shown: str) -> None:
    address = ServerAddress.parse(text)
    assert (address.host, address.port, str(address)) == (host, port, shown)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":80", "a:", "a:b", "a:0", "a:65536", "a:99999999", "a b", "a:1/x"),
        *("https://a", "u@a", "a,b", "[::1", "[::1]80", "[::1]:", "a:\u0661", "a:+1"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InputError, match="expected a server as host or host:port"):
        ServerAddress.parse(text)
