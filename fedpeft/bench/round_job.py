"""What `bench round` gives to an arm and what it takes back.

An arm is a program of its own, `<arm>.py JOB.json RESULT.json`; benchmarks/rounds has both. It
starts a federation and says "ready" on standard output. For every line on standard input it then
takes the run through one round and says how many seconds that took. After the last round it writes
its result and ends.
"""

import math
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

LORA_A, LORA_B = "lora_a", "lora_b"  # as in `adapters.lora`, which needs torch
_FLOAT32_BYTES = 4


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Payload(_Section):
    """The LoRA of a model: query and value of each layer, float32."""

    name: str
    num_layers: int = Field(ge=1)
    num_inputs: int = Field(ge=1, description="Of query and value.")
    num_query_outputs: int = Field(ge=1)
    num_value_outputs: int = Field(ge=1)
    rank: int = Field(ge=1)

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape: what goes down to each client in each round."""
        outputs = {"query": self.num_query_outputs, "value": self.num_value_outputs}
        return {
            f"layer.{layer}.{module}.{factor}": shape
            for layer in range(self.num_layers)
            for module, num_outputs in outputs.items()
            for factor, shape in (
                (LORA_A, (self.rank, self.num_inputs)),
                (LORA_B, (num_outputs, self.rank)),
            )
        }

    @property
    def trained(self) -> list[str]:
        """Names of what comes up again."""
        return [name for name in self.tensors if name.endswith(f".{LORA_B}")]

    @property
    def down_bytes(self) -> int:
        """Of the tensors that go down to one client."""
        return _size_bytes(self.tensors.values())

    @property
    def up_bytes(self) -> int:
        """Of the tensors that come up from one client."""
        return _size_bytes(self.tensors[name] for name in self.trained)


MINILM = Payload(
    name="minilm",
    num_layers=6,
    num_inputs=384,
    num_query_outputs=384,
    num_value_outputs=384,
    rank=8,
)
LLAMA_8B = Payload(
    name="llama-8b",
    num_layers=32,
    num_inputs=4096,
    num_query_outputs=4096,
    num_value_outputs=1024,
    rank=16,
)
PAYLOADS = {payload.name: payload for payload in (MINILM, LLAMA_8B)}


class RoundJob(_Section):
    """JOB.json."""

    rank: int
    tensors: dict[str, tuple[int, ...]] = Field(description="Name → shape; float32, sent down.")
    trained: list[str] = Field(description="Names of those that are sent up.")
    num_clients: int = Field(description="All take part in every round, each a process.")
    num_rounds: int = Field(description="Of the run.")
    count_bytes: bool = Field(description="Count the bytes on the wire, which costs time.")
    seed: int


class RoundResult(_Section):
    """RESULT.json."""

    error: float = Field(
        description="Distance of the last adapter from what the updates must give, relative."
    )
    wire_bytes: int | None = Field(
        description="Of TCP between clients and server, both ways, from the first connection to "
        "the last; null where they were not counted."
    )
    stack: dict[str, str] = Field(description="Versions and choices.")


def _size_bytes(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(_FLOAT32_BYTES * math.prod(shape) for shape in shapes)
