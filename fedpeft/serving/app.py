"""The HTTP side: what is asked for, handed to the model's thread, and its answers sent back."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fedpeft.errors import RemoteError
from fedpeft.serving import openai_responses
from fedpeft.serving.answers import Answers
from fedpeft.serving.config import AppConfig
from fedpeft.serving.generation import Piece
from fedpeft.serving.metrics import ServingMetrics
from fedpeft.serving.openai_requests import (
    ChatBody,
    CompletionBody,
    read_chat,
    read_classify,
    read_completion,
    read_json,
)
from fedpeft.serving.openai_responses import Answer, Reply
from fedpeft.serving.prompts import Prompts
from fedpeft.serving.refusals import Refused
from fedpeft.serving.served import Served

_log = logging.getLogger(__name__)
_CLOSED_BY_CLIENT: Final = 499
_Handler = Callable[[Request], Awaitable[Response]]


class ServingApp:
    """Endpoints over what answers; `asgi` is what a web server runs."""

    def __init__(self, served: Served, config: AppConfig) -> None:
        """Takes what answers, and how requests are taken."""
        self._served, self._config = served, config
        self._metrics = ServingMetrics(served)
        self._created = int(time.time())
        self._prompts = Prompts(
            served.model.tokenizer,
            num_tokens=served.model.num_tokens,
            longest=served.model.longest,
            chat_format=config.chat_format,
        )
        self.asgi = Starlette(
            routes=[
                self._route("/v1/models", "GET", self._models),
                self._route("/v1/completions", "POST", self._completions),
                self._route("/v1/chat/completions", "POST", self._chat),
                self._route("/v1/classify", "POST", self._classify),
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._show_metrics, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _no_route},  # type: ignore[dict-item]
        )

    def _route(self, path: str, method: str, handler: _Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            started = time.perf_counter()
            try:
                self._check_key(request)
                response = await handler(request)
            except RemoteError as error:
                response = _refusal(error)
            except ClientDisconnect:
                response = Response(status_code=_CLOSED_BY_CLIENT)
            except Exception:
                _log.exception("a defect of ours at %s", path)
                response = _refusal(Refused.FAILED.error("this is a defect; the log says more"))
            if not isinstance(response, _EventStream):
                self._metrics.answered(path, response.status_code, time.perf_counter() - started)
            return response

        return Route(path, endpoint, methods=[method])

    def _check_key(self, request: Request) -> None:
        key = self._config.api_key
        if key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), key.encode()):
            raise Refused.NO_KEY.error("send the key as Authorization: Bearer KEY")

    async def _models(self, request: Request) -> Response:
        names = self._served.catalogue.names()
        return JSONResponse(openai_responses.models(names, self._served.model.name, self._created))

    async def _completions(self, request: Request) -> Response:
        body = read_completion(await self._body(request))
        self._check_task("causal-lm")
        prompts = [self._prompts.of_prompt(prompt) for prompt in body.prompts]
        return await self._generate(request, body, prompts, is_chat=False)

    async def _chat(self, request: Request) -> Response:
        body = read_chat(await self._body(request))
        self._check_task("causal-lm")
        return await self._generate(
            request, body, [self._prompts.of_chat(body.messages)], is_chat=True
        )

    async def _generate(
        self,
        request: Request,
        body: CompletionBody | ChatBody,
        prompts: list[list[int]],
        *,
        is_chat: bool,
    ) -> Response:
        sampling = body.sampling
        if not sampling.max_tokens:
            sampling = replace(sampling, max_tokens=self._served.model.longest)
        # Each prompt its own: a seed names one answer.
        samplings = [
            sampling
            if sampling.seed is None or n == 0
            else replace(sampling, seed=sampling.seed + n)
            for n in range(len(prompts))
        ]
        answers = await Answers.begin(self._served, body.model, patience_s=self._config.hold_s)
        reply = Reply(model=body.model, version=answers.version, is_chat=is_chat)
        num_prompt_tokens = sum(len(prompt) for prompt in prompts)
        strips = is_chat and not self._prompts.by_template
        try:
            answers.generate(prompts, samplings)
        except BaseException:
            answers.close()
            raise
        if body.stream:
            return _EventStream(
                self, answers, reply, len(prompts), num_prompt_tokens, body.include_usage, strips
            )
        try:
            found = await _unless_gone(request, _collected(answers, len(prompts), strips))
        finally:
            answers.close()
        self._metrics.tokens(num_prompt_tokens, sum(answer.num_tokens for answer in found))
        return JSONResponse(reply.whole(found, num_prompt_tokens))

    async def _classify(self, request: Request) -> Response:
        body = read_classify(await self._body(request))
        self._check_task("classification")
        answers = await Answers.begin(self._served, body.model, patience_s=self._config.hold_s)
        try:
            rows = [self._prompts.of_text(text, answers.version.max_length) for text in body.texts]
            answers.classify(rows)
            found = await _unless_gone(request, answers.probabilities())
        finally:
            answers.close()
        num_tokens = sum(len(row) for row in rows)
        self._metrics.tokens(num_tokens, 0)
        return JSONResponse(
            openai_responses.classified(body.model, answers.version, found, num_tokens)
        )

    async def _health(self, request: Request) -> Response:
        names = self._served.catalogue.names()
        told = {
            name: {
                "adapter": state.version.digest if state.version else None,
                "problem": state.problem,
                "waiting": state.is_held,
            }
            for name, state in names.items()
        }
        up = bool(names) and all(state.version for state in names.values())
        return JSONResponse(
            {"status": "ok" if up else "unavailable", "models": told}, 200 if up else 503
        )

    async def _show_metrics(self, request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _body(self, request: Request) -> dict[str, Any]:
        most, content = self._config.max_body_bytes, bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > most:
                raise Refused.TOO_LARGE.error(f"a request has at most {most} bytes")
        return read_json(bytes(content))

    def _check_task(self, task: str) -> None:
        if self._served.model.task != task:
            raise Refused.WRONG_TASK.error(
                "this is a classifier; ask /v1/classify"
                if task == "causal-lm"
                else "this is a language model; ask /v1/completions or /v1/chat/completions"
            )

    def streamed(self, path: str, status: int, seconds: float, tokens: tuple[int, int]) -> None:
        """Counts a reply that was streamed."""
        self._metrics.answered(path, status, seconds)
        self._metrics.tokens(*tokens)


class _EventStream(Response):
    """An answer, piece by piece, as server-sent events."""

    def __init__(
        self,
        app: ServingApp,
        answers: Answers,
        reply: Reply,
        num_prompts: int,
        num_prompt_tokens: int,
        include_usage: bool,
        strips: bool,
    ) -> None:
        super().__init__()
        self._app, self._answers, self._reply = app, answers, reply
        self._num_prompts, self._num_prompt_tokens = num_prompts, num_prompt_tokens
        self._include_usage, self._strips = include_usage, strips
        self._num_tokens = 0
        self._status = _CLOSED_BY_CLIENT

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        try:
            body = StreamingResponse(self._lines(), media_type="text/event-stream")
            body.headers["cache-control"] = "no-store"
            await body(scope, receive, send)
        finally:
            # Also where nobody ever asked for the first line.
            self._answers.close()
            tokens = (self._num_prompt_tokens, self._num_tokens)
            elapsed = time.perf_counter() - started
            self._app.streamed(scope["path"], self._status, elapsed, tokens)

    async def _lines(self) -> AsyncIterator[str]:
        strips = [self._strips] * self._num_prompts
        if self._reply.is_chat:
            for n in range(self._num_prompts):
                yield _event(self._reply.chunk(n, "", None, first=True))
        try:
            async for n, event in self._answers.events():
                if isinstance(event, Piece):
                    self._num_tokens += event.num_tokens
                    text = event.text.lstrip() if strips[n] else event.text
                    strips[n] = strips[n] and not text
                    if text:
                        yield _event(self._reply.chunk(n, text, None))
                else:
                    yield _event(self._reply.chunk(n, "", event.reason))
        except RemoteError as error:
            self._status, told = openai_responses.refused(error)
            yield _event(told)
            return
        if self._include_usage:
            yield _event(self._reply.last_chunk(self._num_prompt_tokens, self._num_tokens))
        self._status = 200
        yield "data: [DONE]\n\n"


async def _collected(answers: Answers, num_prompts: int, strips: bool) -> list[Answer]:
    found = [Answer() for _ in range(num_prompts)]
    async for n, event in answers.events():
        if isinstance(event, Piece):
            found[n].text += event.text
            found[n].num_tokens += event.num_tokens
        else:
            found[n].reason = event.reason
    for answer in found:
        answer.text = answer.text.lstrip() if strips else answer.text
    return found


async def _unless_gone(request: Request, work: Any) -> Any:
    """Waits for work, unless who asked hangs up."""
    working = asyncio.ensure_future(work)
    listening = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _no_route(request: Request, error: HTTPException) -> Response:
    if error.status_code == Refused.WRONG_METHOD.value.status:
        return _refusal(
            Refused.WRONG_METHOD.error(f"{request.url.path} does not take {request.method}")
        )
    return _refusal(Refused.NO_SUCH_PATH.error(f"there is nothing at {request.url.path}"))


def _refusal(error: RemoteError) -> JSONResponse:
    status, body = openai_responses.refused(error)
    headers = {"retry-after": "1"} if status in (429, 503) else None
    return JSONResponse(body, status, headers=headers)


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
