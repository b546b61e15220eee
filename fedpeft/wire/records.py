"""How one of our messages lies in a Flower message.

A message is a signed envelope and, where tensors travel, one opaque safetensors blob beside it:

    "fedpeft"  ConfigRecord  envelope: bytes, see `wire.envelope`
    "arrays"   ArrayRecord   one Array "safetensors", uint8, its bytes as they are

The blob is not parsed here and not covered by the signature: the signed body names its digest.
"""

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedpeft.errors import ProtocolError

MAX_ENVELOPE_BYTES = 1 << 20
MAX_BESIDE_TENSORS_BYTES = MAX_ENVELOPE_BYTES + (1 << 16)
"""Of a request or an answer that carries a message: everything but its tensors."""

TENSORS = ("messages_list", "content", "items", "array_record", "items", "value", "data")
"""Where the tensors lie in Flower's PushMessagesRequest and PullMessagesResponse."""

_SIGNED, _ARRAYS, _BLOB = "fedpeft", "arrays", "safetensors"
_ENVELOPE = "envelope"


def to_record(envelope: bytes, blob: bytes | None) -> RecordDict:
    """Packs a message.

    Args:
        envelope: What `wire.envelope.seal` made.
        blob: Tensors as a safetensors file; None where none travel. It is not copied.

    Raises:
        ProtocolError: If envelope or blob is empty or too long: nobody would take it.
    """
    _check_sizes(envelope, blob)
    record = RecordDict({_SIGNED: ConfigRecord({_ENVELOPE: envelope})})
    if blob is not None:
        record[_ARRAYS] = to_arrays(blob)
    return record


def from_record(record: RecordDict) -> tuple[bytes, bytes | None]:
    """Unpacks a message that the other side sent.

    Returns:
        Envelope and blob; the signature has not been checked.

    Raises:
        ProtocolError: If a record, key or type is missing, unknown or of the wrong kind.
    """
    if not {_SIGNED} <= set(record) <= {_SIGNED, _ARRAYS}:
        raise ProtocolError(
            f"expected the records {_SIGNED!r} and perhaps {_ARRAYS!r}, got {_names(record)}"
        )
    signed = record[_SIGNED]
    if not isinstance(signed, ConfigRecord) or set(signed) != {_ENVELOPE}:
        raise ProtocolError(f"expected {_ENVELOPE!r} alone in a ConfigRecord {_SIGNED!r}")
    envelope = signed[_ENVELOPE]
    if not isinstance(envelope, bytes):
        raise ProtocolError("expected the envelope as bytes")
    blob = from_arrays(record[_ARRAYS]) if _ARRAYS in record else None
    _check_sizes(envelope, blob)
    return envelope, blob


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


def _check_sizes(envelope: bytes, blob: bytes | None) -> None:
    if not 0 < len(envelope) <= MAX_ENVELOPE_BYTES:
        raise ProtocolError(
            f"expected an envelope of 1 to {MAX_ENVELOPE_BYTES} bytes, got {len(envelope)}"
        )
    if blob == b"":
        raise ProtocolError("expected tensors or none at all, got an empty blob")


def _names(record: RecordDict) -> list[str]:
    """The first few names, cut short: they are the other side's."""
    return sorted(name[:20] for name in list(record)[:5])
