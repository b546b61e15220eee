"""Serving as it runs: a model in its thread, a web server, callers over HTTP."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fedpeft.models.model_config import ModelConfig
from fedpeft.serving.adapter_files import AdapterFiles, read_export_folder
from fedpeft.serving.app import ServingApp
from fedpeft.serving.config import AppConfig
from fedpeft.serving.http_server import HttpServer
from fedpeft.serving.served import Served
from fedpeft.serving.served_model import ServedModel


@dataclass(kw_only=True)
class Rig:
    """What runs."""

    served: Served
    http: httpx.Client
    url: str

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def text(self, model: str, prompt: str, **more: Any) -> str:
        """The most probable answer."""
        found = self.post(
            "/v1/completions", model=model, prompt=prompt, **{"temperature": 0, **more}
        )
        assert found.status_code == 200, found.text
        said: str = found.json()["choices"][0]["text"]
        return said


@contextmanager
def running(
    config: ModelConfig,
    names: Mapping[str, AdapterFiles],
    *,
    app: AppConfig | None = None,
    max_rows: int = 8,
    max_waiting: int = 64,
    longest: int = 2048,
) -> Iterator[Rig]:
    """Serves adapters under names."""
    model = ServedModel(config.name, config.task, device="cpu", longest=longest)
    with Served(model, max_rows=max_rows, max_waiting=max_waiting) as served:
        for name, files in names.items():
            served.catalogue.declare(name)
            served.swap(name, files)
        serving = ServingApp(served, app or AppConfig())
        with (
            HttpServer(serving.asgi) as server,
            httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as http,
        ):
            yield Rig(served=served, http=http, url=f"http://127.0.0.1:{server.port}")


def read(folder: Path) -> AdapterFiles:
    return read_export_folder(folder)


class Gate:
    """Stops the model's thread before a step, until it is opened."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._entered, self._open = threading.Event(), threading.Event()

    def __enter__(self) -> "Gate":
        def wait() -> None:
            self._entered.set()
            assert self._open.wait(60)

        self._served.thread.call(wait)
        assert self._entered.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.set()
