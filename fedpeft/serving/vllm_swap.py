"""Swapping versions in a vLLM server, and seeing by its outputs that they were swapped.

Loaded again under one name, an adapter may be answered from keys and values that the version before
left in the prefix cache, which goes by the name (vLLM issues 30931 and 42125). Fingerprints are of
outputs on whole prompts and do not show this. So each version gets a name of its own here; who
insists on one name has to let the cache be emptied.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from fedpeft.errors import RemoteError, VerificationError
from fedpeft.registry.fingerprint import Fingerprint
from fedpeft.serving.vllm import NO_ENDPOINT, VllmServer

HALF_PRECISION: Final = 0.05
"""Nats that a server in bfloat16 may be from a fingerprint in float32."""
_NAME_DIGITS: Final = 12


@dataclass(frozen=True, kw_only=True)
class Swapped:
    """What became of a swap.

    Attributes:
        name: That requests ask for now.
        fingerprint: Of what answers.
        unloaded: Names of versions that answer no more.
    """

    name: str
    fingerprint: Fingerprint
    unloaded: tuple[str, ...]


def swap_beside(
    server: VllmServer,
    alias: str,
    digest: str,
    path: str,
    rows: Sequence[Sequence[int]],
    *,
    expected: Fingerprint | None = None,
    tolerance: float = HALF_PRECISION,
    keep: bool = False,
) -> Swapped:
    """Loads a version under `<alias>-<digest>` and unloads the alias' versions before.

    Args:
        server: A vLLM server.
        alias: Begins the names.
        digest: Of the version.
        path: Its folder, as the server sees it.
        rows: Probes, see `fedpeft.registry.fingerprint.probe_rows`.
        expected: What it should say; None: anything that no version before says.
        tolerance: In nats, between what is expected and what is said.
        keep: Leave the versions before, until all callers know the new name.

    Raises:
        RemoteError: If the server refuses.
        TransportError: If it cannot be reached.
        VerificationError: If what answers is not the version; it is unloaded again, and the
            versions before answer on.
    """
    name = f"{alias}-{digest[:_NAME_DIGITS]}"
    own = re.compile(re.escape(alias) + f"-[0-9a-f]{{{_NAME_DIGITS}}}")
    loaded = [found for found in server.names() if own.fullmatch(found)]
    before = {found: server.fingerprint(found, rows) for found in loaded if found != name}
    if name not in loaded:
        server.load(name, path)
    try:
        found = server.fingerprint(name, rows)
        _check(name, found, before, expected, tolerance)
    except BaseException:
        with suppress(RemoteError):
            server.unload(name)
        raise
    if not keep:
        for other in before:
            server.unload(other)
    return Swapped(name=name, fingerprint=found, unloaded=() if keep else tuple(before))


def swap_in_place(
    server: VllmServer,
    name: str,
    path: str,
    rows: Sequence[Sequence[int]],
    *,
    expected: Fingerprint | None = None,
    tolerance: float = HALF_PRECISION,
) -> Swapped:
    """Loads a version under a name that another one has, and empties the prefix cache.

    Requests that are being answered may have a beginning by one version and an end by the other.

    Raises:
        RemoteError: If the server refuses, or does not know `load_inplace`.
        TransportError: If it cannot be reached.
        VerificationError: If what answers is the version before, or not what is expected; or the
            prefix cache cannot be emptied. What answers then is not to be relied on.
    """
    had = name in server.names()
    before = {name: server.fingerprint(name, rows)} if had else {}
    server.load(name, path, in_place=had)
    if had:
        try:
            server.reset_prefix_cache()
        except RemoteError as error:
            if error.code != NO_ENDPOINT:
                raise
            raise VerificationError(
                f"{name} was loaded in place, and answers may still come from keys and values of "
                "the version before: the prefix cache cannot be emptied. Start vLLM with "
                "VLLM_SERVER_DEV_MODE=1 or --no-enable-prefix-caching, or give each version a name"
            ) from error
    found = server.fingerprint(name, rows)
    _check(name, found, before, expected, tolerance)
    return Swapped(name=name, fingerprint=found, unloaded=())


def _check(
    name: str,
    found: Fingerprint,
    before: dict[str, Fingerprint],
    expected: Fingerprint | None,
    tolerance: float,
) -> None:
    for other, said in before.items():
        if found.distance(said) == 0 or (
            expected is not None and found.distance(said) < found.distance(expected)
        ):
            raise VerificationError(
                f"the swap did nothing: {name} says what {other} said before; is the path the one "
                "of the new version?"
            )
    if expected is not None and not found.agrees_with(expected, tolerance):
        raise VerificationError(
            f"{name} does not say what the version says: outputs differ by "
            f"{found.distance(expected):.2g} nats, more than {tolerance:g}"
        )
