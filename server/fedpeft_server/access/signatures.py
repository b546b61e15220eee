"""Whether a request was signed by its caller, for this server, just now, and never before."""

from collections.abc import Callable, Mapping
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedpeft.errors import ProtocolError
from fedpeft.wire.catalogue import Refused
from fedpeft.wire.signing import RequestSignature

UseNonce = Callable[[str, bytes, datetime, datetime], bool]
"""`State.use_nonce`."""


class SignatureCheck:
    """Checks signed requests; see `fedpeft.wire.signing`."""

    def __init__(self, *, is_called: Callable[[str], bool], use_nonce: UseNonce) -> None:
        """Takes whether a host is this server's, and the memory of nonces."""
        self._is_called, self._use_nonce = is_called, use_nonce

    def check(
        self,
        metadata: Mapping[str, str | bytes],
        *,
        method: str,
        request: bytes,
        certificate: x509.Certificate,
        now: datetime,
    ) -> None:
        """Accepts a request once.

        Args:
            metadata: What came with the call.
            method: Its path.
            request: The bytes as they came in.
            certificate: The caller's, which TLS has checked.
            now: The clock.

        Raises:
            RemoteError: `not-signed` or `replayed`.
            UnavailableError: If the memory of nonces cannot be reached.
        """
        try:
            signature = RequestSignature.from_metadata(metadata)
        except ProtocolError as error:
            raise Refused.NOT_SIGNED.error(str(error)) from error
        if not self._is_called(signature.audience):
            raise Refused.NOT_SIGNED.error("it is signed for another server")
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise Refused.NOT_SIGNED.error("the certificate's key is not ECDSA")
        # The nonce comes last: only the caller itself can use one up.
        if not signature.is_by(key, method=method, request=request):
            raise Refused.NOT_SIGNED.error("the signature is not the caller's over this request")
        serial = f"{certificate.serial_number:x}"
        if not signature.is_recent(now) or not self._use_nonce(
            serial, signature.nonce, signature.forgettable_at, now
        ):
            raise Refused.REPLAYED.error()
