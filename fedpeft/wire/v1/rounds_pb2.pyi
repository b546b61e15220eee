from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Signed(_message.Message):
    __slots__ = ("body", "signature", "certificate")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signature: bytes
    certificate: bytes
    def __init__(self, body: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class RunTerms(_message.Message):
    __slots__ = ("protocol", "terms_json")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TERMS_JSON_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    terms_json: str
    def __init__(self, protocol: _Optional[int] = ..., terms_json: _Optional[str] = ...) -> None: ...

class RunOffer(_message.Message):
    __slots__ = ("terms",)
    TERMS_FIELD_NUMBER: _ClassVar[int]
    terms: RunTerms
    def __init__(self, terms: _Optional[_Union[RunTerms, _Mapping]] = ...) -> None: ...

class OfferReply(_message.Message):
    __slots__ = ("run_id", "client_id", "terms_digest", "accepted", "refused")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TERMS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    client_id: str
    terms_digest: str
    accepted: Acceptance
    refused: Refusal
    def __init__(self, run_id: _Optional[str] = ..., client_id: _Optional[str] = ..., terms_digest: _Optional[str] = ..., accepted: _Optional[_Union[Acceptance, _Mapping]] = ..., refused: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Acceptance(_message.Message):
    __slots__ = ("num_examples", "dataset", "remaining_epsilon")
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    REMAINING_EPSILON_FIELD_NUMBER: _ClassVar[int]
    num_examples: int
    dataset: str
    remaining_epsilon: float
    def __init__(self, num_examples: _Optional[int] = ..., dataset: _Optional[str] = ..., remaining_epsilon: _Optional[float] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class RoundPlan(_message.Message):
    __slots__ = ("terms", "client_id", "round", "adapter_digest", "num_examples", "expected_batch_size", "num_rounds", "noise_multiplier")
    TERMS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    terms: RunTerms
    client_id: str
    round: int
    adapter_digest: str
    num_examples: int
    expected_batch_size: float
    num_rounds: int
    noise_multiplier: float
    def __init__(self, terms: _Optional[_Union[RunTerms, _Mapping]] = ..., client_id: _Optional[str] = ..., round: _Optional[int] = ..., adapter_digest: _Optional[str] = ..., num_examples: _Optional[int] = ..., expected_batch_size: _Optional[float] = ..., num_rounds: _Optional[int] = ..., noise_multiplier: _Optional[float] = ...) -> None: ...

class RoundReply(_message.Message):
    __slots__ = ("run_id", "client_id", "round", "plan_digest", "update", "refused")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    client_id: str
    round: int
    plan_digest: str
    update: Update
    refused: Refusal
    def __init__(self, run_id: _Optional[str] = ..., client_id: _Optional[str] = ..., round: _Optional[int] = ..., plan_digest: _Optional[str] = ..., update: _Optional[_Union[Update, _Mapping]] = ..., refused: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("digest", "budget", "train_seconds")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    budget: Budget
    train_seconds: float
    def __init__(self, digest: _Optional[str] = ..., budget: _Optional[_Union[Budget, _Mapping]] = ..., train_seconds: _Optional[float] = ...) -> None: ...

class Budget(_message.Message):
    __slots__ = ("epsilon_spent", "epsilon_budget", "delta", "ledger_head", "dataset")
    EPSILON_SPENT_FIELD_NUMBER: _ClassVar[int]
    EPSILON_BUDGET_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    LEDGER_HEAD_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    epsilon_spent: float
    epsilon_budget: float
    delta: float
    ledger_head: str
    dataset: str
    def __init__(self, epsilon_spent: _Optional[float] = ..., epsilon_budget: _Optional[float] = ..., delta: _Optional[float] = ..., ledger_head: _Optional[str] = ..., dataset: _Optional[str] = ...) -> None: ...
