"""The swap client for vLLM against vLLM's recorded contract."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from fedpeft.errors import RemoteError, TransportError, VerificationError
from fedpeft.registry.fingerprint import probe_rows
from fedpeft.serving.adapter_files import AdapterFiles
from fedpeft.serving.served import fingerprint_of_files
from fedpeft.serving.served_model import ServedModel
from fedpeft.serving.vllm import VllmServer
from fedpeft.serving.vllm_swap import swap_beside, swap_in_place
from tests.serving.exports import stories_config, write_export
from tests.serving.recorded_vllm import EXCHANGES, RecordedVllm, filled, replayed
from tests.serving.rig import read

URL = "http://vllm:8000"


def one_exchange(exchange: str) -> VllmServer:
    """A server that gives one recorded answer, to the recorded request alone."""

    def answer(request: httpx.Request) -> httpx.Response:
        expected = filled(EXCHANGES[exchange]["request"], "NAME", "PATH")
        assert request.method == expected["method"]
        assert request.url.raw_path.decode() == expected["path"]
        assert (json.loads(request.content) if request.content else None) == expected["body"]
        return replayed(exchange)

    return VllmServer(URL, transport=httpx.MockTransport(answer))


def test_every_call_is_the_recorded_one() -> None:
    assert one_exchange("models").names() == [
        "HuggingFaceTB/SmolLM2-135M",
        "production-0123456789ab",
    ]
    one_exchange("load").load("NAME", "PATH")
    one_exchange("load in place").load("NAME", "PATH", in_place=True)
    one_exchange("unload").unload("NAME")
    one_exchange("reset").reset_prefix_cache()
    found = one_exchange("completions").fingerprint("NAME", [[1, 20, 30], [1, 40]])
    assert found.values == (-1.0, -3.25)


REFUSALS: list[tuple[str, Callable[[VllmServer], object], str, str]] = [
    (
        "load what is loaded",
        lambda server: server.load("NAME", "PATH"),
        "vllm-refused",
        "has already been loaded. If you want",
    ),
    (
        "load what is loaded, before load_inplace",
        lambda server: server.load("NAME", "PATH", in_place=True),
        "vllm-refused",
        "has already been loaded.",
    ),
    (
        "load from nowhere",
        lambda server: server.load("NAME", "PATH"),
        "vllm-refused",
        "No adapter found for PATH",
    ),
    (
        "load where it is not allowed",
        lambda server: server.load("NAME", "PATH"),
        "vllm-no-endpoint",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    ),
    (
        "unload what is not loaded",
        lambda server: server.unload("NAME"),
        "vllm-refused",
        "cannot be found",
    ),
    (
        "reset without development mode",
        lambda server: server.reset_prefix_cache(),
        "vllm-no-endpoint",
        "VLLM_SERVER_DEV_MODE",
    ),
]


@pytest.mark.parametrize(("exchange", "call", "code", "said"), REFUSALS)
def test_every_recorded_refusal_is_told(
    exchange: str, call: Callable[[VllmServer], object], code: str, said: str
) -> None:
    with pytest.raises(RemoteError, match=said) as raised:
        call(one_exchange(exchange))
    assert raised.value.code == code


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"data": [{}]}),
    ],
)
def test_something_else_than_vllm(response: httpx.Response) -> None:
    server = VllmServer(URL, transport=httpx.MockTransport(lambda request: response))
    with pytest.raises(TransportError):
        server.names()


@pytest.mark.parametrize(
    "told",
    [
        [None, {"20": {"logprob": -1.0}}],
        [None, {"20": {"logprob": -1.0}}, {"31": {"logprob": -1.0}}],
        [{"1": {"logprob": 0.0}}, {"20": {"logprob": -1.0}}, {"30": {"logprob": -1.0}}],
        [None, None, {"30": {"logprob": -1.0}}],
        None,
    ],
)
def test_outputs_of_other_tokens_are_no_fingerprint(told: object) -> None:
    body = {"choices": [{"index": 0, "prompt_logprobs": told}]}
    server = VllmServer(
        URL, transport=httpx.MockTransport(lambda request: httpx.Response(200, json=body))
    )
    with pytest.raises(TransportError, match="does not answer as vLLM"):
        server.fingerprint("NAME", [[1, 20, 30]])


def test_nobody_listens() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(TransportError, match="cannot be reached"):
        VllmServer(URL, transport=httpx.MockTransport(refuse)).names()


def test_a_key_is_sent() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer sesame"
        return replayed("models")

    VllmServer(URL, api_key="sesame", transport=httpx.MockTransport(answer)).names()


@dataclass(kw_only=True)
class Place:
    """A recorded server with real outputs, and two versions."""

    model: ServedModel
    files: list[AdapterFiles]
    recorded: RecordedVllm
    server: VllmServer
    rows: list[list[int]]

    def beside(self, n: int, **more: bool) -> str:
        files = self.files[n]
        expected = fingerprint_of_files(self.model, files)
        done = swap_beside(
            self.server,
            "production",
            files.digest,
            f"/adapters/{n}",
            self.rows,
            expected=expected,
            **more,
        )
        assert done.fingerprint.distance(expected) < 1e-5
        return done.name


@pytest.fixture(scope="module")
def model(shared_models: Path) -> ServedModel:
    return ServedModel(stories_config(shared_models).name, "causal-lm", device="cpu")


@pytest.fixture
def place(model: ServedModel, shared_models: Path, tmp_path: Path) -> Iterator[Place]:
    files = []
    for seed in range(2):
        write_export(tmp_path / str(seed), stories_config(shared_models), seed=seed)
        files.append(read(tmp_path / str(seed)))
    recorded = RecordedVllm(model, {f"/adapters/{n}": f for n, f in enumerate(files)})
    with VllmServer(URL, transport=recorded) as server:
        yield Place(
            model=model,
            files=files,
            recorded=recorded,
            server=server,
            rows=probe_rows(model.tokenizer, causal=True),
        )


def test_versions_get_names_of_their_own(place: Place) -> None:
    place.recorded.loaded["production-of-others"] = "/adapters/1"
    first, second = (f"production-{files.digest[:12]}" for files in place.files)
    assert place.beside(0) == first
    assert place.beside(1) == second
    assert set(place.recorded.loaded) == {second, "production-of-others"}
    assert place.beside(1) == second  # again changes nothing
    assert place.beside(0, keep=True) == first
    assert set(place.recorded.loaded) == {first, second, "production-of-others"}


def test_a_load_that_does_nothing_is_caught_and_undone(place: Place) -> None:
    first = place.beside(0)
    place.recorded.does_nothing = True
    with pytest.raises(VerificationError, match="the swap did nothing"):
        place.beside(1)
    assert set(place.recorded.loaded) == {first}


def test_a_load_of_something_else_is_caught(place: Place) -> None:
    wrong = fingerprint_of_files(place.model, place.files[1])
    with pytest.raises(VerificationError, match="does not say what the version says"):
        swap_beside(place.server, "production", "0" * 64, "/adapters/0", place.rows, expected=wrong)
    assert place.recorded.loaded == {}


def test_a_refused_load_leaves_the_version_before(place: Place) -> None:
    first = place.beside(0)
    with pytest.raises(RemoteError, match="No adapter found"):
        swap_beside(place.server, "production", "0" * 64, "/nowhere", place.rows)
    assert set(place.recorded.loaded) == {first}


def test_in_place_empties_the_prefix_cache(place: Place) -> None:
    for n in (0, 1):
        expected = fingerprint_of_files(place.model, place.files[n])
        done = swap_in_place(
            place.server, "production", f"/adapters/{n}", place.rows, expected=expected
        )
        assert done.name == "production"
        assert place.recorded.resets == n
    place.recorded.has_reset = False
    with pytest.raises(VerificationError, match="may still come from keys and values of the"):
        swap_in_place(place.server, "production", "/adapters/0", place.rows)


def test_in_place_without_effect_is_caught(place: Place) -> None:
    swap_in_place(place.server, "production", "/adapters/0", place.rows)
    place.recorded.does_nothing = True
    with pytest.raises(VerificationError, match="the swap did nothing"):
        swap_in_place(place.server, "production", "/adapters/1", place.rows)
    place.recorded.knows_in_place = False
    with pytest.raises(RemoteError, match="has already been loaded"):
        swap_in_place(place.server, "production", "/adapters/1", place.rows)
