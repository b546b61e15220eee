"""How much of a protobuf message is tensors, found out before it is parsed.

A parser makes far more of many small fields than they measure: one byte of a packed list becomes
eight in memory, two bytes of an empty message a hundred. One large field of bytes costs itself.
"""

from collections.abc import Sequence

from google.protobuf.message import Message

from fedpeft.errors import ProtocolError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10
_MOST_FIELDS = 1000  # looked at along the path; ours have a few dozen


def field_path(message: type[Message], *names: str) -> tuple[int, ...]:
    """Returns the field numbers along a path of names."""
    numbers: list[int] = []
    fields = message.DESCRIPTOR.fields_by_name
    for name in names:
        numbers.append(fields[name].number)
        inner = fields[name].message_type
        fields = {} if inner is None else inner.fields_by_name
    return tuple(numbers)


def check_small_beside(content: bytes, path: Sequence[int], most_bytes: int) -> None:
    """Checks that what lies beside the fields at the end of a path is small.

    Args:
        content: A serialized message.
        path: Field numbers from the outermost message inwards, to a field of bytes.
        most_bytes: What all the rest may measure.

    Raises:
        ProtocolError: If the rest is larger, or the content is no protobuf.
    """
    inside = _Walk(content).length(0, len(content), path)
    if len(content) - inside > most_bytes:
        raise ProtocolError(
            f"expected at most {most_bytes} bytes beside the tensors, got {len(content) - inside}"
        )


class _Walk:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self._num_fields = 0

    def length(self, start: int, end: int, path: Sequence[int]) -> int:
        """The length of the fields at the end of the path."""
        if not path:
            return end - start
        found = 0
        while start < end:
            self._num_fields += 1
            if self._num_fields > _MOST_FIELDS:
                raise ProtocolError(f"expected at most {_MOST_FIELDS} fields in a message")
            tag, start = self._varint(start, end)
            kind = tag & 7
            if kind == _BYTES:
                size, start = self._varint(start, end)
                if start + size > end:
                    raise _broken()
                if tag >> 3 == path[0]:
                    found += self.length(start, start + size, path[1:])
                start += size
            elif kind == _VARINT:
                _, start = self._varint(start, end)
            elif kind in (_FIXED64, _FIXED32):
                start += 8 if kind == _FIXED64 else 4
            else:
                raise _broken()
        if start > end:
            raise _broken()
        return found

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        value = 0
        for index in range(min(_LONGEST_VARINT, end - start)):
            byte = self._content[start + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value, start + index + 1
        raise _broken()


def _broken() -> ProtocolError:
    return ProtocolError("expected a protobuf message, got something else")
