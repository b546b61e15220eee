"""Our messages in Flower's records: what goes in comes out, and nothing else is taken."""

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedpeft.errors import ProtocolError
from fedpeft.wire.records import MAX_BODY_BYTES, MAX_SIGNATURE_BYTES, from_record, to_record


@given(
    st.binary(min_size=1, max_size=100),
    st.binary(min_size=1, max_size=100),
    st.none() | st.binary(min_size=1, max_size=100),
)
def test_what_goes_in_comes_out(body: bytes, signature: bytes, blob: bytes | None) -> None:
    assert from_record(to_record(body, signature, blob)) == (body, signature, blob)


def test_the_largest_parts_fit_and_tensors_are_not_copied() -> None:
    blob = bytes(1000)
    record = to_record(bytes(MAX_BODY_BYTES), bytes(MAX_SIGNATURE_BYTES), blob)
    assert from_record(record)[2] is blob


@pytest.mark.parametrize(
    ("body", "signature", "blob"),
    [
        (b"", b"s", None),
        (b"b", b"", None),
        (b"b", b"s", b""),
        (bytes(MAX_BODY_BYTES + 1), b"s", None),
        (b"b", bytes(MAX_SIGNATURE_BYTES + 1), None),
    ],
)
def test_what_nobody_would_take_is_not_packed(
    body: bytes, signature: bytes, blob: bytes | None
) -> None:
    with pytest.raises(ProtocolError, match="expected"):
        to_record(body, signature, blob)


def arrays(data: bytes = b"xyz", **changes: object) -> ArrayRecord:
    fields = {"dtype": "uint8", "shape": (len(data),), "stype": "safetensors", "data": data}
    return ArrayRecord({"safetensors": Array(**(fields | changes))})


def config(**changes: object) -> ConfigRecord:
    values = {"body": b"b", "signature": b"s"} | changes
    return ConfigRecord({name: value for name, value in values.items() if value is not None})


def odd_records() -> dict[str, RecordDict]:
    two = arrays()
    two["more"] = two["safetensors"]
    renamed = ArrayRecord({"tensors": two["safetensors"]})
    return {
        "nothing": RecordDict(),
        "only tensors": RecordDict({"arrays": arrays()}),
        "another record": RecordDict({"fedpeft": config(), "more": ConfigRecord()}),
        "a record of another kind": RecordDict({"fedpeft": MetricRecord({"body": 1})}),
        "no body": RecordDict({"fedpeft": config(body=None)}),
        "another key": RecordDict({"fedpeft": config(more=b"x")}),
        "text for a body": RecordDict({"fedpeft": config(body="b")}),
        "a list for a body": RecordDict({"fedpeft": config(body=[b"b", b"c"])}),
        "a number for a signature": RecordDict({"fedpeft": config(signature=1)}),
        "a long body": RecordDict({"fedpeft": config(body=bytes(MAX_BODY_BYTES + 1))}),
        "settings for tensors": RecordDict({"fedpeft": config(), "arrays": config()}),
        "two arrays": RecordDict({"fedpeft": config(), "arrays": two}),
        "an array of another name": RecordDict({"fedpeft": config(), "arrays": renamed}),
        "no array": RecordDict({"fedpeft": config(), "arrays": ArrayRecord()}),
        "an empty array": RecordDict({"fedpeft": config(), "arrays": arrays(b"")}),
        "another type": RecordDict({"fedpeft": config(), "arrays": arrays(dtype="float32")}),
        "another shape": RecordDict({"fedpeft": config(), "arrays": arrays(shape=(1, 3))}),
        "another length": RecordDict({"fedpeft": config(), "arrays": arrays(shape=(10**12,))}),
        "numpy": RecordDict({"fedpeft": config(), "arrays": arrays(stype="numpy.ndarray")}),
        "a pickle": RecordDict({"fedpeft": config(), "arrays": arrays(stype="pickle")}),
    }


@pytest.mark.parametrize("name", list(odd_records()))
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="expected"):
        from_record(odd_records()[name])


def test_a_refusal_does_not_repeat_what_came_at_length() -> None:
    record = RecordDict({"x" * 10_000: ConfigRecord()})
    with pytest.raises(ProtocolError) as caught:
        from_record(record)
    assert len(str(caught.value)) < 200
