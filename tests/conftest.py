"""Settings and fixtures that all tests share."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import hypothesis
import pytest

from tests import postgres

# A test does not fail because the machine is busy.
hypothesis.settings.register_profile("untimed", parent=hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("untimed")

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is first imported
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start; see _one_thread


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


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """The folder with public models that are not part of this repository."""
    beside = Path(__file__).parents[2] / "shared" / "models"
    path = Path(os.environ.get("FEDPEFT_SHARED_MODELS", beside))
    if not path.is_dir():
        pytest.skip(f"no public models at {path}; set FEDPEFT_SHARED_MODELS to their folder")
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct."""
    path = os.environ.get("FEDPEFT_SMOLLM2")
    if path is None:
        pytest.skip("needs SmolLM2-135M-Instruct; set FEDPEFT_SMOLLM2 to its folder")
    return Path(path)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BERT: 2 layers, 32 features, nn.Linear."""
    from tests.tiny_models import save_bert

    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Llama: 2 layers, 32 features, an output weight of its own."""
    from tests.tiny_models import save_llama

    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved GPT-2: 2 layers, 32 features, Conv1D, tied output weight."""
    from tests.tiny_models import save_gpt2

    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """A PostgreSQL that runs; each test takes a schema of its own."""
    with postgres.server() as running:
        yield running


@pytest.fixture
def execute(location: str) -> Callable[..., list[tuple[object, ...]]]:
    """Runs SQL behind the back of what is in `location`, as one who has the database can."""

    def call(*statements: str) -> list[tuple[object, ...]]:
        if "://" in location:
            import psycopg

            with closing(psycopg.connect(location)) as connection:
                for statement in statements:
                    cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
                connection.commit()
                return rows
        with closing(sqlite3.connect(location)) as file:
            for statement in statements:
                found = file.execute(statement).fetchall()
            file.commit()
            return found

    return call
