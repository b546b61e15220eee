"""The endpoints over real HTTP, with real models."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedpeft.models.base_model import load_base_model, load_tokenizer
from fedpeft.models.dataset import Dataset, collate
from fedpeft.serving.config import AppConfig
from fedpeft.unlearning.metrics.continuations import continuations
from tests.serving.exports import minilm_config, stories_config, write_export
from tests.serving.rig import Gate, Rig, read, running

PROMPT = "Once upon a time"
LABELS = ("bill", "card", "greeting")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, shared_models: Path) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    config = stories_config(shared_models)
    for seed in range(3):
        write_export(folder / f"stories{seed}", config, seed=seed)
    for seed in range(2):
        write_export(
            folder / f"minilm{seed}", minilm_config(), seed=seed, modules=("query",), labels=LABELS
        )
    return folder


@pytest.fixture(scope="module")
def rig(exports: Path, shared_models: Path) -> Iterator[Rig]:
    names = {name: read(exports / f"stories{n}") for n, name in enumerate(("production", "next"))}
    with running(stories_config(shared_models), names, longest=128) as found:
        yield found


@pytest.fixture(scope="module")
def classifier(exports: Path) -> Iterator[Rig]:
    names = {f"minilm{n}": read(exports / f"minilm{n}") for n in range(2)}
    with running(minilm_config(), names) as found:
        yield found


def expected_text(exports: Path, shared_models: Path, seed: int, prompt: str, num: int) -> str:
    """By transformers' own generation, with the adapter merged into the weights."""
    config = stories_config(shared_models)
    model = write_export(exports.parent / f"again{seed}", config, seed=seed)
    model.method.merge(model.task_model)
    tokenizer = load_tokenizer(config)
    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    (said,) = continuations(model.task_model.base, [ids], [num], pad_id=0, end_ids=[2])
    text: str = tokenizer.decode(ids + said, skip_special_tokens=True)
    before: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text[len(before) :]


def events(text: str) -> list[Any]:
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_completion_is_what_the_merged_model_says(
    rig: Rig, exports: Path, shared_models: Path
) -> None:
    for seed, name in enumerate(("production", "next")):
        expected = expected_text(exports, shared_models, seed, PROMPT, 20)
        assert rig.text(name, PROMPT, max_tokens=20) == expected
    assert rig.text("production", PROMPT) != rig.text("next", PROMPT)


def test_the_body_of_a_completion(rig: Rig) -> None:
    found = rig.post("/v1/completions", model="production", prompt=PROMPT, temperature=0).json()
    digest = rig.served.catalogue.state("production").version.digest  # type: ignore[union-attr]
    assert found["object"] == "text_completion"
    assert found["model"] == "production"
    assert found["system_fingerprint"] == digest
    (choice,) = found["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["index"] == 0
    assert found["usage"]["completion_tokens"] == 16  # OpenAI's default
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] + 16


def test_a_version_answers_under_its_digest_too(rig: Rig) -> None:
    digest = rig.served.catalogue.state("next").version.digest  # type: ignore[union-attr]
    assert rig.text(digest, PROMPT) == rig.text("next", PROMPT)


def test_several_prompts_and_token_ids(rig: Rig) -> None:
    ids = rig.served.model.tokenizer("The dog", add_special_tokens=False)["input_ids"]
    prompts: list[Any] = [PROMPT, "The dog"]
    found = rig.post("/v1/completions", model="next", prompt=prompts, temperature=0).json()
    assert [choice["text"] for choice in found["choices"]] == [
        rig.text("next", prompt) for prompt in prompts
    ]
    assert rig.text("next", [1, *ids]) == rig.text("next", "The dog")  # type: ignore[arg-type]


def test_a_streamed_completion_is_the_whole_one(rig: Rig) -> None:
    body = {"model": "production", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
    found = rig.post("/v1/completions", **body, stream=True, stream_options={"include_usage": True})
    assert found.headers["content-type"].startswith("text/event-stream")
    *pieces, usage = events(found.text)
    texts = [piece["choices"][0]["text"] for piece in pieces]
    assert len(texts) > 5
    assert "".join(texts) == rig.text("production", PROMPT, max_tokens=12)
    assert pieces[-1]["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12


def test_a_chat_is_a_question_where_the_model_has_no_template(rig: Rig) -> None:
    messages = [{"role": "user", "content": "Who is Lily?"}]
    found = rig.post(
        "/v1/chat/completions", model="next", messages=messages, temperature=0, max_tokens=9
    ).json()
    assert found["object"] == "chat.completion"
    message = found["choices"][0]["message"]
    expected = rig.text("next", "Question: Who is Lily?\nAnswer:", max_tokens=9)
    assert message == {"role": "assistant", "content": expected.lstrip()}
    streamed = rig.post(
        "/v1/chat/completions",
        model="next",
        messages=[{"role": "user", "content": [{"type": "text", "text": "Who is Lily?"}]}],
        temperature=0,
        max_completion_tokens=9,
        stream=True,
    )
    first, *pieces = events(streamed.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    said = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert said == message["content"]


def test_a_chat_without_a_bound_ends_where_there_is_no_more_room(rig: Rig) -> None:
    found = rig.post(
        "/v1/chat/completions",
        model="production",
        messages=[{"role": "user", "content": "Tell me a story"}],
        seed=3,
    ).json()
    if found["choices"][0]["finish_reason"] == "length":
        assert found["usage"]["total_tokens"] == 128
    else:
        assert found["usage"]["total_tokens"] < 128


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(rig: Rig) -> None:
    whole = rig.text("production", PROMPT, max_tokens=30)
    stop = whole[11:15]
    found = rig.post(
        "/v1/completions",
        model="production",
        prompt=PROMPT,
        temperature=0,
        max_tokens=30,
        stop=[stop, "never said"],
    ).json()["choices"][0]
    assert found["text"] == whole[: whole.index(stop)]
    assert found["finish_reason"] == "stop"
    streamed = rig.post(
        "/v1/completions",
        model="production",
        prompt=PROMPT,
        temperature=0,
        max_tokens=30,
        stop=stop,
        stream=True,
    )
    pieces = [piece["choices"][0] for piece in events(streamed.text)]
    assert "".join(piece["text"] for piece in pieces) == found["text"]
    assert pieces[-1]["finish_reason"] == "stop"


def test_a_seed_repeats_an_answer_whatever_else_is_answered(rig: Rig) -> None:
    body = {"model": "production", "prompt": PROMPT, "max_tokens": 16, "temperature": 1.5}
    alone = rig.post("/v1/completions", **body, seed=7).json()["choices"][0]["text"]
    beside = rig.post("/v1/completions", **{**body, "prompt": [PROMPT] * 5}, seed=7).json()
    texts = [choice["text"] for choice in beside["choices"]]
    assert texts[0] == alone
    assert len(set(texts)) == 5
    without = {rig.post("/v1/completions", **body).json()["choices"][0]["text"] for _ in range(4)}
    assert len(without) == 4


def test_top_p_leaves_the_likeliest_tokens_alone(rig: Rig) -> None:
    body = {"model": "production", "prompt": PROMPT, "max_tokens": 16, "temperature": 1.5}
    least = rig.post("/v1/completions", **body, top_p=1e-6).json()["choices"][0]["text"]
    assert least == rig.text("production", PROMPT)


def test_a_classifier_gives_the_probabilities_of_the_exported_model(
    classifier: Rig, exports: Path
) -> None:
    texts = ["where is my card", "hello there"]
    for seed in range(2):
        model = write_export(
            exports.parent / f"minilm-again{seed}",
            minilm_config(),
            seed=seed,
            modules=("query",),
            labels=LABELS,
        )
        found = classifier.post("/v1/classify", model=f"minilm{seed}", input=texts).json()
        for text, entry in zip(texts, found["data"], strict=True):
            ids = load_tokenizer(minilm_config())(text)["input_ids"]
            batch = collate(
                Dataset(input_ids=[ids], targets=[0], pad_id=0), [0], torch.device("cpu")
            )
            with torch.inference_mode():
                expected = model.task_model.logits(batch)[0].softmax(0)
            assert entry["probs"] == pytest.approx(expected.tolist(), abs=1e-5)
            assert entry["label"] == LABELS[int(expected.argmax())]
            assert entry["num_classes"] == 3
        assert found["labels"] == list(LABELS)


def test_models_are_names_and_digests(rig: Rig) -> None:
    found = rig.http.get("/v1/models").json()
    state = rig.served.catalogue.state("production")
    assert state.version is not None
    entry = next(entry for entry in found["data"] if entry["id"] == "production")
    assert entry["root"] == state.version.digest
    assert {entry["id"] for entry in found["data"]} >= {"production", "next", state.version.digest}
    health = rig.http.get("/health")
    assert health.status_code == 200
    assert health.json()["models"]["production"]["adapter"] == state.version.digest


def test_metrics_count_requests_and_tokens(rig: Rig) -> None:
    def value(name: str) -> float:
        lines = rig.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    name = 'fedpeft_serving_requests_total{path="/v1/completions",status="200"}'
    before, tokens = value(name), value('fedpeft_serving_tokens_total{of="answer"}')
    rig.text("production", PROMPT, max_tokens=5)
    assert value(name) == before + 1
    assert value('fedpeft_serving_tokens_total{of="answer"}') == tokens + 5
    assert value('fedpeft_serving_name_up{name="production"}') == 1


GOOD: dict[str, Any] = {"model": "production", "prompt": PROMPT}


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "other"}, 404, "model_not_found"),
        ({"model": 3}, 400, "invalid_value"),
        ({"prompt": None}, 400, "invalid_value"),
        ({"prompt": []}, 400, "invalid_value"),
        ({"prompt": [1, "a"]}, 400, "invalid_value"),
        ({"prompt": [512]}, 400, "invalid_value"),
        ({"prompt": [-1]}, 400, "invalid_value"),
        ({"prompt": [True]}, 400, "invalid_value"),
        ({"prompt": [5] * 128}, 400, "context_length_exceeded"),
        ({"max_tokens": 0}, 400, "invalid_value"),
        ({"max_tokens": 1.5}, 400, "invalid_value"),
        ({"temperature": -1}, 400, "invalid_value"),
        ({"temperature": "0"}, 400, "invalid_value"),
        ({"temperature": True}, 400, "invalid_value"),
        ({"top_p": 0}, 400, "invalid_value"),
        ({"top_p": 1.1}, 400, "invalid_value"),
        ({"seed": 2**64}, 400, "invalid_value"),
        ({"stop": [""]}, 400, "invalid_value"),
        ({"stop": ["a"] * 5}, 400, "invalid_value"),
        ({"stream": 1}, 400, "invalid_value"),
        ({"stream_options": {"include_usage": True}}, 400, "invalid_value"),
        ({"n": 2}, 400, "unsupported_parameter"),
        ({"n": True}, 400, "unsupported_parameter"),
        ({"logprobs": 0}, 400, "unsupported_parameter"),
        ({"echo": True}, 400, "unsupported_parameter"),
        ({"min_p": 0.1}, 400, "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, 400, "unsupported_parameter"),
        ({"messages": []}, 400, "unsupported_parameter"),
    ],
)
def test_what_cannot_be_done_as_asked_is_refused(
    rig: Rig, change: dict[str, Any], status: int, code: str
) -> None:
    found = rig.post("/v1/completions", **{**GOOD, **change})
    assert (found.status_code, found.json()["error"]["code"]) == (status, code), found.text
    assert set(found.json()["error"]) == {"message", "type", "param", "code"}


def test_values_that_change_nothing_are_taken(rig: Rig) -> None:
    more = {"n": 1, "echo": False, "logprobs": None, "presence_penalty": 0.0, "user": "someone"}
    assert rig.text("production", PROMPT, **more) == rig.text("production", PROMPT)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"temperature": NaN}', b"\xff", b"[" * 99999]
)
def test_a_body_that_is_no_json_object(rig: Rig, content: bytes) -> None:
    found = rig.http.post("/v1/completions", content=content)
    assert found.status_code == 400
    assert found.json()["error"]["code"] == "invalid_value"


def test_other_paths_and_methods_and_tasks(rig: Rig, classifier: Rig) -> None:
    assert rig.http.get("/v2").json()["error"]["code"] == "not_found"
    assert rig.http.get("/v1/completions").status_code == 405
    found = rig.post("/v1/classify", model="production", input="a")
    assert found.json()["error"]["code"] == "wrong_task"
    found = classifier.post("/v1/completions", **GOOD)
    assert found.json()["error"]["code"] == "wrong_task"
    assert classifier.post("/v1/classify", model="minilm0", input=[]).status_code == 400
    assert rig.http.post("/v1/completions", content=b" " * (2**20 + 1)).status_code == 413


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user"}],
        [{"role": "tool", "content": "a"}],
        [{"role": "user", "content": "a", "name": "b"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
    ],
)
def test_messages_that_are_no_single_question(rig: Rig, messages: list[Any]) -> None:
    found = rig.post("/v1/chat/completions", model="production", messages=messages)
    assert found.status_code == 400


def test_a_key_is_asked_for(exports: Path, shared_models: Path) -> None:
    config = stories_config(shared_models)
    names = {"production": read(exports / "stories0")}
    with running(config, names, app=AppConfig(api_key="sesame")) as rig:
        assert rig.post("/v1/completions", **GOOD).status_code == 401
        assert rig.http.get("/v1/models").status_code == 401
        assert rig.http.get("/health").status_code == 200
        rig.http.headers["Authorization"] = "Bearer sesame"
        assert rig.post("/v1/completions", **GOOD).status_code == 200


def test_too_many_waiting_requests_are_refused(exports: Path, shared_models: Path) -> None:
    config = stories_config(shared_models)
    with (
        running(config, {"a": read(exports / "stories0")}, max_waiting=2) as rig,
        Gate(rig.served),
    ):
        found = rig.post("/v1/completions", model="a", prompt=["a", "b", "c"])
        assert (found.status_code, found.json()["error"]["code"]) == (429, "overloaded")
        assert found.headers["retry-after"] == "1"
        assert rig.served.answering.num_waiting == 0
    assert rig.served.catalogue.num_requests(rig.served.catalogue.state("a").version.digest) == 0  # type: ignore[union-attr]


def test_the_base_model_says_something_else(rig: Rig, shared_models: Path) -> None:
    """Else none of the above would show that adapters are in use."""
    config = stories_config(shared_models)
    tokenizer = load_tokenizer(config)
    ids = [1, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
    (said,) = continuations(load_base_model(config), [ids], [16], pad_id=0, end_ids=[2])
    assert tokenizer.decode(ids + said)[len(tokenizer.decode(ids)) :] != rig.text(
        "production", PROMPT
    )
