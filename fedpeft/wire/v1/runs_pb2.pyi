import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATUS_UNSPECIFIED: _ClassVar[RunStatus]
    RUN_STATUS_SUBMITTED: _ClassVar[RunStatus]
    RUN_STATUS_PREPARING: _ClassVar[RunStatus]
    RUN_STATUS_RUNNING: _ClassVar[RunStatus]
    RUN_STATUS_FINISHED: _ClassVar[RunStatus]
    RUN_STATUS_STOPPED: _ClassVar[RunStatus]
    RUN_STATUS_FAILED: _ClassVar[RunStatus]
RUN_STATUS_UNSPECIFIED: RunStatus
RUN_STATUS_SUBMITTED: RunStatus
RUN_STATUS_PREPARING: RunStatus
RUN_STATUS_RUNNING: RunStatus
RUN_STATUS_FINISHED: RunStatus
RUN_STATUS_STOPPED: RunStatus
RUN_STATUS_FAILED: RunStatus

class Run(_message.Message):
    __slots__ = ("run_id", "name", "status", "clients", "num_rounds", "rounds_finished", "submitted_at", "submitted_by", "reason", "adapter")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FINISHED_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_BY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    status: RunStatus
    clients: str
    num_rounds: int
    rounds_finished: int
    submitted_at: _timestamp_pb2.Timestamp
    submitted_by: str
    reason: str
    adapter: str
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[_Union[RunStatus, str]] = ..., clients: _Optional[str] = ..., num_rounds: _Optional[int] = ..., rounds_finished: _Optional[int] = ..., submitted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., submitted_by: _Optional[str] = ..., reason: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class RunDetails(_message.Message):
    __slots__ = ("run", "config_json", "rounds", "participants")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANTS_FIELD_NUMBER: _ClassVar[int]
    run: Run
    config_json: str
    rounds: _containers.RepeatedCompositeFieldContainer[RoundRecord]
    participants: _containers.RepeatedCompositeFieldContainer[Participant]
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ..., config_json: _Optional[str] = ..., rounds: _Optional[_Iterable[_Union[RoundRecord, _Mapping]]] = ..., participants: _Optional[_Iterable[_Union[Participant, _Mapping]]] = ...) -> None: ...

class Participant(_message.Message):
    __slots__ = ("client_id", "num_examples", "noise_multiplier", "num_rounds_planned", "num_updates", "epsilon_spent")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    NUM_ROUNDS_PLANNED_FIELD_NUMBER: _ClassVar[int]
    NUM_UPDATES_FIELD_NUMBER: _ClassVar[int]
    EPSILON_SPENT_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    num_examples: int
    noise_multiplier: float
    num_rounds_planned: int
    num_updates: int
    epsilon_spent: float
    def __init__(self, client_id: _Optional[str] = ..., num_examples: _Optional[int] = ..., noise_multiplier: _Optional[float] = ..., num_rounds_planned: _Optional[int] = ..., num_updates: _Optional[int] = ..., epsilon_spent: _Optional[float] = ...) -> None: ...

class RoundRecord(_message.Message):
    __slots__ = ("round", "cohort", "missing", "seconds", "metrics", "adapter", "uplink_bytes", "downlink_bytes")
    class MissingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    UPLINK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOWNLINK_BYTES_FIELD_NUMBER: _ClassVar[int]
    round: int
    cohort: _containers.RepeatedScalarFieldContainer[str]
    missing: _containers.ScalarMap[str, str]
    seconds: float
    metrics: _containers.ScalarMap[str, float]
    adapter: str
    uplink_bytes: int
    downlink_bytes: int
    def __init__(self, round: _Optional[int] = ..., cohort: _Optional[_Iterable[str]] = ..., missing: _Optional[_Mapping[str, str]] = ..., seconds: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ..., adapter: _Optional[str] = ..., uplink_bytes: _Optional[int] = ..., downlink_bytes: _Optional[int] = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("position", "at", "kind", "round", "client_id", "body_json")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    BODY_JSON_FIELD_NUMBER: _ClassVar[int]
    position: int
    at: _timestamp_pb2.Timestamp
    kind: str
    round: int
    client_id: str
    body_json: str
    def __init__(self, position: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[str] = ..., round: _Optional[int] = ..., client_id: _Optional[str] = ..., body_json: _Optional[str] = ...) -> None: ...

class SubmitRunRequest(_message.Message):
    __slots__ = ("config_json", "held_out", "held_out_suffix", "idempotency_key", "start_from")
    CONFIG_JSON_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_SUFFIX_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    START_FROM_FIELD_NUMBER: _ClassVar[int]
    config_json: str
    held_out: bytes
    held_out_suffix: str
    idempotency_key: str
    start_from: str
    def __init__(self, config_json: _Optional[str] = ..., held_out: _Optional[bytes] = ..., held_out_suffix: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., start_from: _Optional[str] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("run_id", "after")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    after: int
    def __init__(self, run_id: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class StopRunRequest(_message.Message):
    __slots__ = ("run_id", "reason")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    reason: str
    def __init__(self, run_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ResumeRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...
