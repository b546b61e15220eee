"""A vLLM server's endpoints for adapters.

vLLM takes adapters while it runs where it was started with --enable-lora and
VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import httpx

from fedpeft.errors import RemoteError, TransportError
from fedpeft.registry.fingerprint import Fingerprint

REFUSED: Final = "vllm-refused"
NO_ENDPOINT: Final = "vllm-no-endpoint"
_LONGEST_SHOWN = 500


class VllmServer:
    """Calls to a vLLM server. Use it in a `with` block.

    Every method raises

    - `RemoteError` where the server refuses; its code is "vllm-no-endpoint" where it was not
      started so that it has the endpoint, and "vllm-refused" otherwise,
    - `TransportError` where it cannot be reached, or does not answer as vLLM does.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepares it.

        Args:
            url: Such as http://localhost:8000, without /v1.
            api_key: That the server asks for.
            timeout_s: Of each call.
            transport: Instead of the network.
        """
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._url = url.rstrip("/")
        self._http = httpx.Client(headers=headers, timeout=timeout_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def names(self) -> list[str]:
        """Returns the names that it answers under, the base model's among them."""
        listed = self._json(self._call("GET", "/v1/models"))
        try:
            return [str(entry["id"]) for entry in listed["data"]]
        except (KeyError, TypeError) as error:
            raise self._odd("/v1/models", error) from error

    def load(self, name: str, path: str, *, in_place: bool = False) -> None:
        """Loads an adapter.

        Args:
            name: That requests will ask for.
            path: Folder in PEFT format, as the server sees it.
            in_place: Also where another one has this name. Older servers refuse then.
        """
        body: dict[str, Any] = {"lora_name": name, "lora_path": path}
        if in_place:
            body["load_inplace"] = True
        self._call("POST", "/v1/load_lora_adapter", body)

    def unload(self, name: str) -> None:
        """Unloads an adapter."""
        self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def reset_prefix_cache(self) -> None:
        """Empties the prefix cache; rows that are being answered begin again.

        The server has this endpoint where it was started with VLLM_SERVER_DEV_MODE=1. It does not
        say whether it succeeded.
        """
        self._call("POST", "/reset_prefix_cache?reset_running_requests=true")

    def fingerprint(self, name: str, rows: Sequence[Sequence[int]]) -> Fingerprint:
        """Returns the fingerprint of what answers under a name.

        Args:
            name: Of an adapter, or of the base model.
            rows: See `fedpeft.registry.fingerprint.probe_rows`.
        """
        path = "/v1/completions"
        body = {
            "model": name,
            "prompt": [list(row) for row in rows],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        said = self._json(self._call("POST", path, body))
        try:
            choices = {
                int(choice["index"]): choice["prompt_logprobs"] for choice in said["choices"]
            }
            values = [_mean(row, choices[n]) for n, row in enumerate(rows)]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise self._odd(path, error) from error
        return Fingerprint(values=tuple(values))

    def _call(self, method: str, path: str, body: object = None) -> httpx.Response:
        try:
            response = self._http.request(method, self._url + path, json=body)
        except httpx.HTTPError as error:
            raise TransportError(f"{self._url} cannot be reached ({error})") from error
        if response.is_success:
            return response
        message = _reason(response)
        if message is None:
            raise RemoteError(
                NO_ENDPOINT,
                f"{self._url} has no {path.partition('?')[0]}; start vLLM with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and for its caches VLLM_SERVER_DEV_MODE=1",
            )
        raise RemoteError(
            REFUSED, f"vLLM at {self._url} refuses ({response.status_code}): {message}"
        )

    def _json(self, response: httpx.Response) -> Mapping[str, Any]:
        try:
            read = response.json()
        except ValueError as error:
            raise self._odd(response.url.path, error) from error
        if not isinstance(read, dict):
            raise self._odd(response.url.path, None)
        return read

    def _odd(self, path: str, error: Exception | None) -> TransportError:
        return TransportError(f"{self._url}{path} does not answer as vLLM does ({error!r})")


def _mean(row: Sequence[int], told: Sequence[Mapping[str, Any] | None]) -> float:
    """Of the log-probabilities of a row's tokens; of the first there is none."""
    if len(told) != len(row) or told[0] is not None:
        raise ValueError(f"expected {len(row)} entries of prompt_logprobs, got {len(told)}")
    values = [
        float((entry or {})[str(token)]["logprob"])
        for token, entry in zip(row[1:], told[1:], strict=True)
    ]
    return sum(values) / len(values)


def _reason(response: httpx.Response) -> str | None:
    """What vLLM says; None where nothing of it listens there."""
    try:
        body = response.json()
    except ValueError:
        return response.text[:_LONGEST_SHOWN]
    if body == {"detail": "Not Found"}:
        return None
    # Newer versions put it into `error`.
    said = body.get("error", body) if isinstance(body, dict) else {}
    message = said.get("message") if isinstance(said, dict) else None
    return str(message if message is not None else body)[:_LONGEST_SHOWN]
