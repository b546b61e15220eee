from pathlib import Path

import pytest
import torch

from fedpeft.errors import ProtocolError
from fedpeft.types import tensor_digest
from fedpeft.wire.blobs import read_blob, to_blob
from fedpeft_server.run_math import RunMath
from tests.federated.small_runs import OFF, run_config
from tests.server.local_federation import remote_config

RUN = "00000000000000aa"


def test_an_update_is_checked_against_the_adapter_that_is_held(tmp_path: Path, tiny_bert: Path):
    config = remote_config(run_config(tiny_bert, tmp_path, privacy=OFF))
    math = RunMath(config.model_dump(mode="json", exclude_unset=True), None)
    start = math.start(RUN)
    adapter = read_blob(start.adapter)
    update = {name: t + 0.5 for name, t in adapter.items() if not name.endswith("lora_a")}
    blob, digest = to_blob(update), tensor_digest(update)
    assert math.check_update(blob, digest, start.digest) is None
    math.hold(start.adapter, start.digest)
    count = sum(tensor.numel() for tensor in update.values())
    assert math.check_update(blob, digest, start.digest) == pytest.approx(0.5 * count**0.5)
    assert math.check_update(blob, digest, "0" * 64) is None, "another round's adapter"
    with pytest.raises(ProtocolError, match="digest"):
        math.check_update(blob, start.digest, start.digest)
    with pytest.raises(ProtocolError, match="digest"):
        math.hold(to_blob({name: torch.zeros_like(t) for name, t in adapter.items()}), start.digest)
