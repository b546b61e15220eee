"""Settings and fixtures that all tests share."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is first imported


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One thread: equal sums on every machine, and test processes do not crowd each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with public data sets that are not part of this repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("FEDPEFT_SHARED_DATA", beside))
    if not path.is_dir():
        pytest.skip(f"no public data sets at {path}; set FEDPEFT_SHARED_DATA to their folder")
    return path
