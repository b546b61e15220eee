import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RemovalState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REMOVAL_STATE_UNSPECIFIED: _ClassVar[RemovalState]
    REMOVAL_STATE_RECEIVED: _ClassVar[RemovalState]
    REMOVAL_STATE_PLANNED: _ClassVar[RemovalState]
    REMOVAL_STATE_RUNNING: _ClassVar[RemovalState]
    REMOVAL_STATE_VERIFYING: _ClassVar[RemovalState]
    REMOVAL_STATE_PUBLISHED: _ClassVar[RemovalState]
    REMOVAL_STATE_FAILED: _ClassVar[RemovalState]
    REMOVAL_STATE_CANCELLED: _ClassVar[RemovalState]
REMOVAL_STATE_UNSPECIFIED: RemovalState
REMOVAL_STATE_RECEIVED: RemovalState
REMOVAL_STATE_PLANNED: RemovalState
REMOVAL_STATE_RUNNING: RemovalState
REMOVAL_STATE_VERIFYING: RemovalState
REMOVAL_STATE_PUBLISHED: RemovalState
REMOVAL_STATE_FAILED: RemovalState
REMOVAL_STATE_CANCELLED: RemovalState

class RemovalOrder(_message.Message):
    __slots__ = ("adapter", "client_id", "place", "method", "num_records", "settings_json", "void_guarantee", "private_job", "deadline")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    NUM_RECORDS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    VOID_GUARANTEE_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_JOB_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    client_id: str
    place: str
    method: str
    num_records: int
    settings_json: str
    void_guarantee: bool
    private_job: bool
    deadline: _timestamp_pb2.Timestamp
    def __init__(self, adapter: _Optional[str] = ..., client_id: _Optional[str] = ..., place: _Optional[str] = ..., method: _Optional[str] = ..., num_records: _Optional[int] = ..., settings_json: _Optional[str] = ..., void_guarantee: _Optional[bool] = ..., private_job: _Optional[bool] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RemovalPlan(_message.Message):
    __slots__ = ("adapter", "affected", "aliases", "method", "claim", "clean_ancestor", "guarantee", "notes", "gate_json")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    AFFECTED_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    CLAIM_FIELD_NUMBER: _ClassVar[int]
    CLEAN_ANCESTOR_FIELD_NUMBER: _ClassVar[int]
    GUARANTEE_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    GATE_JSON_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    affected: _containers.RepeatedScalarFieldContainer[str]
    aliases: _containers.RepeatedScalarFieldContainer[str]
    method: str
    claim: str
    clean_ancestor: str
    guarantee: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    gate_json: str
    def __init__(self, adapter: _Optional[str] = ..., affected: _Optional[_Iterable[str]] = ..., aliases: _Optional[_Iterable[str]] = ..., method: _Optional[str] = ..., claim: _Optional[str] = ..., clean_ancestor: _Optional[str] = ..., guarantee: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ..., gate_json: _Optional[str] = ...) -> None: ...

class RequestRemovalRequest(_message.Message):
    __slots__ = ("order", "idempotency_key", "records_digest")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    RECORDS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    order: RemovalOrder
    idempotency_key: str
    records_digest: str
    def __init__(self, order: _Optional[_Union[RemovalOrder, _Mapping]] = ..., idempotency_key: _Optional[str] = ..., records_digest: _Optional[str] = ...) -> None: ...

class Removal(_message.Message):
    __slots__ = ("request_id", "order", "plan", "state", "reason", "requested_by", "created_at", "updated_at", "records_digest", "job_public_key", "successor", "num_attempts", "progress")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_BY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    RECORDS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    JOB_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_FIELD_NUMBER: _ClassVar[int]
    NUM_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    order: RemovalOrder
    plan: RemovalPlan
    state: RemovalState
    reason: str
    requested_by: str
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    records_digest: str
    job_public_key: bytes
    successor: str
    num_attempts: int
    progress: float
    def __init__(self, request_id: _Optional[str] = ..., order: _Optional[_Union[RemovalOrder, _Mapping]] = ..., plan: _Optional[_Union[RemovalPlan, _Mapping]] = ..., state: _Optional[_Union[RemovalState, str]] = ..., reason: _Optional[str] = ..., requested_by: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., records_digest: _Optional[str] = ..., job_public_key: _Optional[bytes] = ..., successor: _Optional[str] = ..., num_attempts: _Optional[int] = ..., progress: _Optional[float] = ...) -> None: ...

class UploadRecordsRequest(_message.Message):
    __slots__ = ("request_id", "sealed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    sealed: bytes
    def __init__(self, request_id: _Optional[str] = ..., sealed: _Optional[bytes] = ...) -> None: ...

class SubmitSuccessorRequest(_message.Message):
    __slots__ = ("request_id", "adapter", "result_json", "files")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    RESULT_JSON_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    adapter: bytes
    result_json: str
    files: _containers.RepeatedCompositeFieldContainer[RemovalFile]
    def __init__(self, request_id: _Optional[str] = ..., adapter: _Optional[bytes] = ..., result_json: _Optional[str] = ..., files: _Optional[_Iterable[_Union[RemovalFile, _Mapping]]] = ...) -> None: ...

class RemovalFile(_message.Message):
    __slots__ = ("name", "content")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    content: bytes
    def __init__(self, name: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class ListRemovalsRequest(_message.Message):
    __slots__ = ("client_id",)
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    def __init__(self, client_id: _Optional[str] = ...) -> None: ...

class ListRemovalsResponse(_message.Message):
    __slots__ = ("removals",)
    REMOVALS_FIELD_NUMBER: _ClassVar[int]
    removals: _containers.RepeatedCompositeFieldContainer[Removal]
    def __init__(self, removals: _Optional[_Iterable[_Union[Removal, _Mapping]]] = ...) -> None: ...

class GetRemovalRequest(_message.Message):
    __slots__ = ("request_id", "after")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    after: int
    def __init__(self, request_id: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class CancelRemovalRequest(_message.Message):
    __slots__ = ("request_id", "reason")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    reason: str
    def __init__(self, request_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RemovalEvent(_message.Message):
    __slots__ = ("position", "at", "kind", "body_json")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BODY_JSON_FIELD_NUMBER: _ClassVar[int]
    position: int
    at: _timestamp_pb2.Timestamp
    kind: str
    body_json: str
    def __init__(self, position: _Optional[int] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[str] = ..., body_json: _Optional[str] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("receipt_json",)
    RECEIPT_JSON_FIELD_NUMBER: _ClassVar[int]
    receipt_json: str
    def __init__(self, receipt_json: _Optional[str] = ...) -> None: ...

class RemovalJob(_message.Message):
    __slots__ = ("order_json", "adapter")
    ORDER_JSON_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    order_json: str
    adapter: bytes
    def __init__(self, order_json: _Optional[str] = ..., adapter: _Optional[bytes] = ...) -> None: ...
