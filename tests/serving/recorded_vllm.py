"""vLLM's answers as they were recorded, and a server that gives them in vLLM's order of things."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedpeft.serving.adapter_files import AdapterFiles
from fedpeft.serving.http_server import HttpServer
from fedpeft.serving.served_model import ServedModel

EXCHANGES: Mapping[str, Any] = json.loads(
    Path(__file__).with_name("vllm_contract.json").read_text(encoding="utf-8")
)["exchanges"]


def filled(value: Any, name: str, path: str) -> Any:
    """The recorded value, with the name and path of this request in it."""
    return json.loads(json.dumps(value).replace("NAME", name).replace("PATH", path))


def replayed(exchange: str, *, name: str = "NAME", path: str = "PATH") -> httpx.Response:
    response = filled(EXCHANGES[exchange]["response"], name, path)
    if "json" in response:
        return httpx.Response(response["status"], json=response["json"])
    return httpx.Response(response["status"], text=response["text"])


class RecordedVllm(httpx.BaseTransport):
    """Answers with recorded bodies; the outputs of its adapters are a real model's."""

    def __init__(self, model: ServedModel, paths: Mapping[str, AdapterFiles]) -> None:
        self._model, self._paths = model, paths
        self.loaded: dict[str, str] = {}
        self.resets = 0
        self.has_reset = True
        self.knows_in_place = True
        # Planted: the answer is "Success", and the adapter stays what it was.
        self.does_nothing = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        route = {
            "/v1/models": self._models,
            "/v1/load_lora_adapter": self._load,
            "/v1/unload_lora_adapter": self._unload,
            "/v1/completions": self._completions,
            "/reset_prefix_cache": self._reset,
        }[request.url.path]
        return route(body)

    def _models(self, body: Any) -> httpx.Response:
        found = replayed("models").json()
        base, adapter = found["data"]
        found["data"] = [base] + [
            {**adapter, "id": name, "root": path} for name, path in self.loaded.items()
        ]
        return httpx.Response(200, json=found)

    def _load(self, body: Any) -> httpx.Response:
        name, path = body["lora_name"], body["lora_path"]
        if not self.knows_in_place and name in self.loaded:
            return replayed("load what is loaded, before load_inplace", name=name)
        if name in self.loaded and not body.get("load_inplace"):
            return replayed("load what is loaded", name=name)
        if path not in self._paths:
            return replayed("load from nowhere", name=name, path=path)
        if self.does_nothing and self.loaded:
            path = next(iter(self.loaded.values()))
        self.loaded[name] = path
        return replayed("load", name=name)

    def _unload(self, body: Any) -> httpx.Response:
        name = body["lora_name"]
        if self.loaded.pop(name, None) is None:
            return replayed("unload what is not loaded", name=name)
        return replayed("unload", name=name)

    def _reset(self, body: Any) -> httpx.Response:
        self.resets += 1
        return replayed("reset" if self.has_reset else "reset without development mode")

    def _completions(self, body: Any) -> httpx.Response:
        found = replayed("completions", name=body["model"]).json()
        template = found["choices"][0]
        found["choices"] = []
        rows = body["prompt"]
        with self._model.bank.alone(self._paths[self.loaded[body["model"]]]):
            logits = self._model.logits(rows)
        for n, (row, logits_TV) in enumerate(zip(rows, logits, strict=True)):
            log_probs = logits_TV.log_softmax(-1)
            told = [None] + [
                {
                    str(token): {
                        "logprob": float(log_probs[t, token]),
                        "rank": 1,
                        "decoded_token": "",
                    }
                }
                for t, token in enumerate(row[1:])
            ]
            found["choices"].insert(0, {**template, "index": n, "prompt_logprobs": told})
        return httpx.Response(200, json=found)


def listening(recorded: RecordedVllm) -> HttpServer:
    """The same over real HTTP."""

    async def answer(request: Request) -> Response:
        found = recorded.handle_request(
            httpx.Request(request.method, str(request.url), content=await request.body())
        )
        return Response(found.content, found.status_code, media_type="application/json")

    return HttpServer(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])]))
