"""Bodies of requests, as OpenAI's API and vLLM's have them, read strictly.

What would change an answer and is not done here is refused, never passed over.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedpeft.serving.refusals import Refused
from fedpeft.serving.sampling import Sampling

_MOST_STOPS, _LONGEST_STOP = 4, 200
_MOST_PROMPTS = 256
_COMPLETION_TOKENS = 16
# Accepted with the one value that changes nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "store": (False,),
}
_WITHOUT_MEANING = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
_COMMON = frozenset(
    {"model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options"}
)
Prompt = str | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class CompletionBody:
    """Of /v1/completions.

    Attributes:
        prompts: Each a text or token ids, one or more.
    """

    model: str
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    stream: bool
    include_usage: bool


@dataclass(frozen=True, kw_only=True)
class ChatBody:
    """Of /v1/chat/completions.

    Attributes:
        sampling: Its `max_tokens` is 0 where as many are wanted as fit.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    stream: bool
    include_usage: bool


@dataclass(frozen=True, kw_only=True)
class ClassifyBody:
    """Of /v1/classify."""

    model: str
    texts: tuple[str, ...]


def read_json(content: bytes) -> dict[str, Any]:
    """Reads a body.

    Raises:
        RemoteError: If it is no JSON object.
    """

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        read = json.loads(content, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise Refused.INVALID.error(f"the body is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise Refused.INVALID.error("the body should be a JSON object")
    # Null means: as if it were not there.
    return {name: value for name, value in read.items() if value is not None}


def read_completion(body: Mapping[str, Any]) -> CompletionBody:
    """Reads a body of /v1/completions.

    Raises:
        RemoteError: If it cannot be answered as it asks.
    """
    _check_names(body, _COMMON | {"prompt"})
    return CompletionBody(
        model=_model(body),
        prompts=_prompts(body.get("prompt")),
        sampling=_sampling(body, _whole(body, "max_tokens", 1) or _COMPLETION_TOKENS),
        stream=_flag(body, "stream"),
        include_usage=_include_usage(body),
    )


def read_chat(body: Mapping[str, Any]) -> ChatBody:
    """Reads a body of /v1/chat/completions.

    Raises:
        RemoteError: If it cannot be answered as it asks.
    """
    _check_names(body, _COMMON | {"messages", "max_completion_tokens"})
    most = _whole(body, "max_completion_tokens", 1) or _whole(body, "max_tokens", 1)
    messages = body.get("messages")
    if not isinstance(messages, list) or not 1 <= len(messages) <= _MOST_PROMPTS:
        raise Refused.INVALID.error(f"messages should be a list of 1 to {_MOST_PROMPTS} messages")
    return ChatBody(
        model=_model(body),
        messages=tuple(_message(message) for message in messages),
        sampling=_sampling(body, most or 0),
        stream=_flag(body, "stream"),
        include_usage=_include_usage(body),
    )


def read_classify(body: Mapping[str, Any]) -> ClassifyBody:
    """Reads a body of /v1/classify.

    Raises:
        RemoteError: If it cannot be answered as it asks.
    """
    _check_names(body, frozenset({"model", "input"}))
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if (
        not isinstance(texts, list)
        or not 1 <= len(texts) <= _MOST_PROMPTS
        or not all(isinstance(text, str) for text in texts)
    ):
        raise Refused.INVALID.error(f"input should be a text, or a list of 1 to {_MOST_PROMPTS}")
    return ClassifyBody(model=_model(body), texts=tuple(texts))


def _check_names(body: Mapping[str, Any], known: frozenset[str]) -> None:
    for name, value in body.items():
        if name in known or name in _WITHOUT_MEANING:
            continue
        if name not in _NEUTRAL:
            raise Refused.UNSUPPORTED.error(f"{name} is not supported here; leave it out")
        if not any(value == allowed and _alike(value, allowed) for allowed in _NEUTRAL[name]):
            shown = " or ".join(json.dumps(allowed) for allowed in _NEUTRAL[name])
            raise Refused.UNSUPPORTED.error(f"{name} can only be {shown} here; leave it out")


def _alike(value: object, allowed: object) -> bool:
    return isinstance(value, bool) == isinstance(allowed, bool)


def _model(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Refused.INVALID.error("model should name an alias or a version; see /v1/models")
    return model


def _prompts(given: object) -> tuple[Prompt, ...]:
    if isinstance(given, str) or _is_ids(given):
        given = [given]
    if (
        not isinstance(given, list)
        or not 1 <= len(given) <= _MOST_PROMPTS
        or not all(isinstance(prompt, str) or _is_ids(prompt) for prompt in given)
    ):
        raise Refused.INVALID.error(
            f"prompt should be a text, token ids, or a list of 1 to {_MOST_PROMPTS} of them"
        )
    return tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in given)


def _is_ids(given: object) -> bool:
    return isinstance(given, list) and bool(given) and all(type(entry) is int for entry in given)


def _sampling(body: Mapping[str, Any], max_tokens: int) -> Sampling:
    stop = body.get("stop", [])
    stops: Sequence[object] = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, list)
        or len(stops) > _MOST_STOPS
        or not all(isinstance(text, str) and 0 < len(text) <= _LONGEST_STOP for text in stops)
    ):
        raise Refused.INVALID.error(
            f"stop should be a text of 1 to {_LONGEST_STOP} characters, or up to {_MOST_STOPS}"
        )
    top_p = _number(body, "top_p", 1.0, most=1.0)
    if top_p == 0:
        raise Refused.INVALID.error(
            "top_p should be more than 0; for the likeliest token set temperature to 0"
        )
    return Sampling(
        max_tokens=max_tokens,
        temperature=_number(body, "temperature", 1.0, most=2.0),
        top_p=top_p,
        seed=_whole(body, "seed", -(2**63), 2**63 - 1),
        stop=tuple(str(text) for text in stops),
    )


def _number(body: Mapping[str, Any], name: str, default: float, *, most: float) -> float:
    value = body.get(name, default)
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise Refused.INVALID.error(f"{name} should be a number from 0 to {most:g}, got {value!r}")
    return float(value)


def _whole(body: Mapping[str, Any], name: str, least: int, most: int = 2**31 - 1) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise Refused.INVALID.error(
            f"{name} should be a whole number from {least} to {most}, got {value!r}"
        )
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise Refused.INVALID.error(f"{name} should be true or false, got {value!r}")
    return value


def _include_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options", {})
    if not isinstance(options, dict) or not options.keys() <= {"include_usage"}:
        raise Refused.UNSUPPORTED.error("stream_options knows include_usage alone")
    if options and not _flag(body, "stream"):
        raise Refused.INVALID.error("stream_options goes with stream alone")
    return _flag(options, "include_usage")


def _message(message: object) -> Message:
    if not isinstance(message, dict) or not message.keys() <= {"role", "content"}:
        raise Refused.UNSUPPORTED.error("a message should have role and content, nothing else")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise Refused.INVALID.error(
            f"the role of a message should be system, user or assistant, got {role!r}"
        )
    if isinstance(content, list):
        content = "".join(_text_part(part) for part in content)
    if not isinstance(content, str):
        raise Refused.INVALID.error("the content of a message should be text")
    return Message(role="system" if role == "developer" else role, content=content)


def _text_part(part: object) -> str:
    if (
        not isinstance(part, dict)
        or part.get("type") != "text"
        or not isinstance(part.get("text"), str)
        or part.keys() != {"type", "text"}
    ):
        raise Refused.UNSUPPORTED.error("a message can hold parts of type text alone")
    text: str = part["text"]
    return text
