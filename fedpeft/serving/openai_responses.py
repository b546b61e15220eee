"""Bodies of answers, as OpenAI's API and vLLM's have them.

`system_fingerprint` is the digest of the version that answered.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedpeft.errors import RemoteError
from fedpeft.serving.catalogue import NameState, Version
from fedpeft.serving.refusals import BY_CODE


@dataclass(kw_only=True)
class Answer:
    """One prompt's answer while it grows."""

    text: str = ""
    reason: str | None = None
    num_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What all bodies of one reply have in common."""

    model: str
    version: Version
    is_chat: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer], num_prompt_tokens: int) -> dict[str, Any]:
        """Returns the body of a reply that is not streamed."""
        choices = [
            {
                "index": n,
                "logprobs": None,
                "finish_reason": answer.reason,
                **self._told(answer.text),
            }
            for n, answer in enumerate(answers)
        ]
        return {
            **self._head("chat.completion" if self.is_chat else "text_completion"),
            "choices": choices,
            "usage": usage(num_prompt_tokens, sum(answer.num_tokens for answer in answers)),
        }

    def chunk(
        self, n: int, text: str, reason: str | None, *, first: bool = False
    ) -> dict[str, Any]:
        """Returns a piece of a streamed reply."""
        said: dict[str, Any] = {"text": text}
        if self.is_chat:
            delta: dict[str, Any] = {"role": "assistant"} if first else {}
            if text or first:
                delta["content"] = text
            said = {"delta": delta}
        return {
            **self._head("chat.completion.chunk" if self.is_chat else "text_completion"),
            "choices": [{"index": n, "logprobs": None, "finish_reason": reason, **said}],
        }

    def last_chunk(self, num_prompt_tokens: int, num_tokens: int) -> dict[str, Any]:
        """Returns the piece of a streamed reply that counts tokens."""
        return {
            **self._head("chat.completion.chunk" if self.is_chat else "text_completion"),
            "choices": [],
            "usage": usage(num_prompt_tokens, num_tokens),
        }

    def _told(self, text: str) -> dict[str, Any]:
        return (
            {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        )

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.version.digest,
        }


def classified(
    model: str, version: Version, rows: Sequence[Sequence[float]], num_tokens: int
) -> dict[str, Any]:
    """Returns the body of /v1/classify."""
    data = []
    for n, probs in enumerate(rows):
        best = max(range(len(probs)), key=lambda c: probs[c])
        data.append(
            {
                "index": n,
                "label": version.labels[best],
                "probs": list(probs),
                "num_classes": len(probs),
            }
        )
    return {
        "id": f"classify-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": version.digest,
        "labels": list(version.labels),
        "data": data,
        "usage": usage(num_tokens, 0),
    }


def models(names: Mapping[str, NameState], base_model: str, created: int) -> dict[str, Any]:
    """Returns the body of /v1/models: each name that answers, and each version by its digest."""
    found = {name: state.version for name, state in names.items() if state.version is not None}
    found |= {version.digest: version for version in found.values()}
    return {
        "object": "list",
        "data": [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "fedpeft",
                "root": version.digest,
                "parent": base_model,
            }
            for name, version in sorted(found.items())
        ],
    }


def usage(num_prompt_tokens: int, num_tokens: int) -> dict[str, int]:
    """Returns how many tokens a request had."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
    }


def refused(error: RemoteError) -> tuple[int, dict[str, Any]]:
    """Returns the HTTP status and the body of a refusal."""
    refusal = BY_CODE[error.code].value
    body = {"message": str(error), "type": refusal.type, "param": None, "code": refusal.code}
    return refusal.status, {"error": body}
