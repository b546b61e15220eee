"""How one of our messages lies in a Flower message.

A message is a signed body and, where tensors travel, one opaque safetensors blob beside it:

    "fedpeft"  ConfigRecord  body, signature: bytes
    "arrays"   ArrayRecord   one Array "safetensors", uint8, its bytes as they are

The blob is not parsed here and not covered by the signature: the body names its digest.
"""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedpeft.errors import ProtocolError

MAX_BODY_BYTES = 1 << 20
MAX_SIGNATURE_BYTES = 1 << 10
MAX_BESIDE_TENSORS_BYTES = MAX_BODY_BYTES + MAX_SIGNATURE_BYTES + (1 << 16)
"""Of a request or an answer that carries a message: everything but its tensors."""

TENSORS = ("messages_list", "content", "items", "array_record", "items", "value", "data")
"""Where the tensors lie in Flower's PushMessagesRequest and PullMessagesResponse."""

_SIGNED, _ARRAYS, _BLOB = "fedpeft", "arrays", "safetensors"
_BODY, _SIGNATURE = "body", "signature"


def to_record(body: bytes, signature: bytes, blob: bytes | None) -> RecordDict:
    """Packs a message.

    Args:
        body: What is signed.
        signature: Over the body.
        blob: Tensors as a safetensors file; None where none travel. It is not copied.

    Raises:
        ProtocolError: If body, signature or blob is empty or too long: nobody would take it.
    """
    _check_sizes(body, signature, blob)
    record = RecordDict({_SIGNED: ConfigRecord({_BODY: body, _SIGNATURE: signature})})
    if blob is not None:
        record[_ARRAYS] = to_arrays(blob)
    return record


def from_record(record: RecordDict) -> tuple[bytes, bytes, bytes | None]:
    """Unpacks a message that the other side sent.

    Returns:
        Body, signature and blob; the signature has not been checked.

    Raises:
        ProtocolError: If a record, key or type is missing, unknown or of the wrong kind.
    """
    if not {_SIGNED} <= set(record) <= {_SIGNED, _ARRAYS}:
        raise ProtocolError(
            f"expected the records {_SIGNED!r} and perhaps {_ARRAYS!r}, got {_names(record)}"
        )
    signed = record[_SIGNED]
    if not isinstance(signed, ConfigRecord) or set(signed) != {_BODY, _SIGNATURE}:
        raise ProtocolError(f"expected {_BODY!r} and {_SIGNATURE!r} in a ConfigRecord {_SIGNED!r}")
    body, signature = signed[_BODY], signed[_SIGNATURE]
    if not isinstance(body, bytes) or not isinstance(signature, bytes):
        raise ProtocolError("expected body and signature as bytes")
    blob = from_arrays(record[_ARRAYS]) if _ARRAYS in record else None
    _check_sizes(body, signature, blob)
    return body, signature, blob


def to_arrays(blob: bytes) -> ArrayRecord:
    """Packs tensors, as they lie in a message."""
    return ArrayRecord({_BLOB: Array(dtype="uint8", shape=(len(blob),), stype=_BLOB, data=blob)})


def from_arrays(arrays: object) -> bytes:
    """Unpacks tensors.

    Raises:
        ProtocolError: If they are not packed as `to_arrays` does.
    """
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {_BLOB}:
        raise ProtocolError(f"expected one array {_BLOB!r} in an ArrayRecord {_ARRAYS!r}")
    array = arrays[_BLOB]
    if (array.dtype, array.shape, array.stype) != ("uint8", (len(array.data),), _BLOB):
        raise ProtocolError(
            f"expected {len(array.data)} uint8 stored as {_BLOB!r}, got {array.dtype[:20]!r} of "
            f"shape {str(array.shape)[:40]} stored as {array.stype[:20]!r}"
        )
    return array.data


def _check_sizes(body: bytes, signature: bytes, blob: bytes | None) -> None:
    if not 0 < len(body) <= MAX_BODY_BYTES:
        raise ProtocolError(f"expected a body of 1 to {MAX_BODY_BYTES} bytes, got {len(body)}")
    if not 0 < len(signature) <= MAX_SIGNATURE_BYTES:
        raise ProtocolError(
            f"expected a signature of 1 to {MAX_SIGNATURE_BYTES} bytes, got {len(signature)}"
        )
    if blob == b"":
        raise ProtocolError("expected tensors or none at all, got an empty blob")


def _names(record: RecordDict) -> list[str]:
    """The first few names, cut short: they are the other side's."""
    return sorted(name[:20] for name in list(record)[:5])
