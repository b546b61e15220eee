"""How calls are made: again where they may be, and with errors that say what to do."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from fedpeft.identity.credentials import Credentials
from fedpeft.remote.address import ServerAddress
from fedpeft.remote.channel import SigningChannel, open_channel
from fedpeft.remote.explain import explain

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


class Caller:
    """Holds the channel; `Connection` and the parts that it is made of make calls over it."""

    def __init__(
        self,
        server: str | ServerAddress,
        credentials: Credentials,
        *,
        timeout_s: float = 60.0,
        patience_s: float = 10.0,
    ) -> None:
        """Prepares the connection; the first call connects.

        Args:
            server: Such as "fed.example.org", "fed.example.org:7443". Its certificate must be for
                this host.
            credentials: Who calls.
            timeout_s: Of each call; streams have none.
            patience_s: How long calls are made again while the server is unavailable.
        """
        self.address = server if isinstance(server, ServerAddress) else ServerAddress.parse(server)
        self._credentials = credentials
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._channel = open_channel(self.address, credentials)
        self._signing = SigningChannel(self._channel, credentials, self.address.host)

    @classmethod
    def open(cls, server: str, identity: Path, **settings: float) -> Self:
        """Prepares a connection as the holder of a folder with key.pem, cert.pem and so on.

        Raises:
            IdentityError: If the folder does not hold them, or the certificate is not valid now.
            InputError: If the server's address cannot be read.
        """
        return cls(server, Credentials.in_folder(identity), **settings)

    @property
    def caller(self) -> str:
        """The name in the caller's certificate."""
        return self._credentials.name

    def close(self) -> None:
        """Closes the connection; streams that are open end."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, method: Callable[..., Any], request: object, *, repeatable: bool = True) -> Any:
        retry = _Retry(self._patience_s if repeatable else 0.0)
        while True:
            try:
                return method(request, timeout=self._timeout_s)
            except grpc.RpcError as error:
                self._pause_or_raise(error, retry)

    def _stream(self, method: Callable[..., Any], request: object) -> Iterator[Any]:
        stream = method(request)
        try:
            yield from stream
        except grpc.RpcError as error:
            self._pause_or_raise(error, _Retry(0.0))
        finally:
            stream.cancel()

    def _watch(self, open_stream: Callable[[int], Any], after: int) -> Iterator[Any]:
        """Yields the events of a stream, opened again after the last one where it breaks."""
        retry = _Retry(self._patience_s)
        while True:
            stream = open_stream(after)
            try:
                for event in stream:
                    retry = _Retry(self._patience_s)
                    after = event.position
                    yield event
            except grpc.RpcError as error:
                self._pause_or_raise(error, retry)
            else:
                return
            finally:
                stream.cancel()

    def _pause_or_raise(self, error: grpc.RpcError, retry: "_Retry") -> None:
        found = explain(error, self.address, self._credentials)
        if not (found.may_pass and retry.pause()):
            raise found.error from error


class _Retry:
    """Longer and longer pauses, until patience is at its end."""

    def __init__(self, patience_s: float) -> None:
        self._until = time.monotonic() + patience_s
        self._pause_s = _FIRST_PAUSE_S

    def pause(self) -> bool:
        """Waits; returns False at once where there is no more time for it."""
        pause_s = self._pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        if time.monotonic() + pause_s > self._until:
            return False
        time.sleep(pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return True
