"""Swaps while requests are answered, and swaps that silently do nothing."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from fedpeft.errors import AdapterError, VerificationError
from fedpeft.federated.export import export_adapter
from fedpeft.serving.adapter_files import AdapterFiles
from fedpeft.serving.bank import AdapterBank
from fedpeft.serving.catalogue import Catalogue
from tests.serving.exports import minilm_config, stories_config, write_export
from tests.serving.rig import Gate, Rig, read, running

PROMPT = "Once upon a time"
NUM_VERSIONS = 4


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory, shared_models: Path) -> list[AdapterFiles]:
    folder = tmp_path_factory.mktemp("versions")
    config = stories_config(shared_models)
    for seed in range(NUM_VERSIONS):
        write_export(folder / str(seed), config, seed=seed, rank=2 + seed, modules=("*_proj",))
    return [read(folder / str(seed)) for seed in range(NUM_VERSIONS)]


@pytest.fixture
def rig(versions: list[AdapterFiles], shared_models: Path) -> Iterator[Rig]:
    names = {"production": versions[0]}
    with running(stories_config(shared_models), names) as found:
        yield found


def answer(rig: Rig, model: str = "production", num_tokens: int = 24) -> tuple[str, str]:
    """The version that answered, and what it said."""
    found = httpx.post(
        f"{rig.url}/v1/completions",
        json={"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": num_tokens},
        timeout=60,
    )
    assert found.status_code == 200, found.text
    body = found.json()
    return body["system_fingerprint"], body["choices"][0]["text"]


def digest_of(rig: Rig, name: str = "production") -> str:
    version = rig.served.catalogue.state(name).version
    assert version is not None
    return version.digest


def test_swaps_under_load_drop_nothing_and_mix_nothing(
    rig: Rig, versions: list[AdapterFiles]
) -> None:
    """Callers ask without a pause while the name goes through all versions, twice."""
    expected = {}
    for files in versions:
        rig.served.swap("quiet", files)
        expected[files.digest] = answer(rig, "quiet")[1]
    assert len(set(expected.values())) == NUM_VERSIONS
    stop = threading.Event()
    answered: list[tuple[str, str]] = []
    begun = threading.Semaphore(0)

    def ask() -> int:
        num = 0
        while not stop.is_set():
            answered.append(answer(rig))
            begun.release()
            num += 1
        return num

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask) for _ in range(6)]
        for files in (*versions[1:], *versions):
            for _ in range(8):  # some answers between two swaps
                assert begun.acquire(timeout=60)
            rig.served.swap("production", files)
            assert digest_of(rig) == files.digest
        stop.set()
        total = sum(future.result() for future in asking)
    assert total == len(answered) >= 7 * 8
    assert {digest for digest, _ in answered} == set(expected)
    for digest, text in answered:
        assert text == expected[digest]


def test_a_classifier_is_swapped_under_load(tmp_path: Path) -> None:
    """Versions with other labels, and another number of them."""
    config, texts = minilm_config(), ["where is my card", "good morning", "cancel it"]
    files = []
    for n in range(3):
        labels = tuple(f"label {c} of {n}" for c in range(2 + n))
        write_export(tmp_path / str(n), config, seed=n, modules=("query",), labels=labels)
        files.append(read(tmp_path / str(n)))

    with running(config, {"production": files[0], "quiet": files[0]}) as rig:

        def classify(name: str = "production") -> dict[str, Any]:
            found = httpx.post(
                f"{rig.url}/v1/classify", json={"model": name, "input": texts}, timeout=60
            )
            assert found.status_code == 200, found.text
            body: dict[str, Any] = found.json()
            return body

        expected = {}
        for each in files:
            rig.served.swap("quiet", each)
            expected[each.digest] = classify("quiet")
        stop, answered = threading.Event(), []
        begun = threading.Semaphore(0)

        def ask() -> None:
            while not stop.is_set():
                answered.append(classify())
                begun.release()

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            for each in (*files[1:], *files):
                for _ in range(4):
                    assert begun.acquire(timeout=60)
                rig.served.swap("production", each)
            stop.set()
            for future in asking:
                future.result()
    assert {body["system_fingerprint"] for body in answered} == set(expected)
    for body in answered:
        own = expected[body["system_fingerprint"]]
        assert body["labels"] == own["labels"]
        for entry, wanted in zip(body["data"], own["data"], strict=True):
            assert entry["label"] == wanted["label"]
            assert entry["probs"] == pytest.approx(wanted["probs"], abs=1e-5)


def test_a_request_ends_with_the_version_that_it_began_with(
    rig: Rig, versions: list[AdapterFiles]
) -> None:
    old = versions[0].digest
    expected = answer(rig)
    with ThreadPoolExecutor(2) as pool:
        lines: list[str] = []
        first_piece, may_read = threading.Event(), threading.Event()

        def read_slowly() -> None:
            body = {"model": "production", "prompt": PROMPT, "temperature": 0, "max_tokens": 24}
            url = f"{rig.url}/v1/completions"
            with httpx.stream("POST", url, json={**body, "stream": True}, timeout=60) as found:
                for line in found.iter_lines():
                    lines.append(line)
                    first_piece.set()
                    assert may_read.wait(60)

        with Gate(rig.served):
            reading = pool.submit(read_slowly)
            _until(lambda: rig.served.catalogue.num_requests(old) == 1)
        # It has begun. Now the name moves, while the answer is on its way.
        rig.served.swap("production", versions[1])
        assert first_piece.wait(60)
        may_read.set()
        reading.result()
    pieces = [httpx.Response(200, text=line[6:]).json() for line in lines if line[:7] == "data: {"]
    assert {piece["system_fingerprint"] for piece in pieces} == {old}
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == expected[1]
    assert answer(rig)[0] == versions[1].digest


def _until(holds: Any) -> None:
    """Looks again and again; the test's own time limit ends it."""
    seen = threading.Event()
    while not holds():
        seen.wait(0.001)


def test_a_version_is_unloaded_with_its_last_request(
    rig: Rig, versions: list[AdapterFiles]
) -> None:
    old = versions[0].digest
    with rig.served.catalogue.answering("production"):
        rig.served.swap("production", versions[1])
        rig.served.thread.call(lambda: None).result()
        assert rig.served.model.bank.digests == {old, versions[1].digest}
    rig.served.thread.call(lambda: None).result()
    assert rig.served.model.bank.digests == {versions[1].digest}
    found = rig.post("/v1/completions", model=old, prompt=PROMPT)
    assert found.status_code == 404


def test_a_load_that_keeps_the_old_tensors_is_caught(
    rig: Rig, versions: list[AdapterFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a hot-swap that silently does nothing looks like: a new name on the old tensors."""
    before = answer(rig)

    def add(bank: AdapterBank, files: AdapterFiles) -> None:
        bank._factors[files.digest] = bank._factors[versions[0].digest]

    monkeypatch.setattr(AdapterBank, "add", add)
    with pytest.raises(VerificationError, match="did nothing: what answers is the version before"):
        rig.served.swap("production", versions[1])
    assert answer(rig) == before
    assert digest_of(rig) == versions[0].digest


def test_a_name_that_does_not_move_is_caught(
    rig: Rig, versions: list[AdapterFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Catalogue, "point", lambda *args: None)
    with pytest.raises(VerificationError, match="did nothing"):
        rig.served.swap("production", versions[1])
    found = rig.post("/v1/completions", model="production", prompt=PROMPT)
    assert (found.status_code, found.json()["error"]["code"]) == (503, "not_served")
    assert rig.http.get("/health").status_code == 503


def test_wrong_factors_in_memory_are_caught(
    rig: Rig, versions: list[AdapterFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = AdapterBank.add

    def twice_as_strong(bank: AdapterBank, files: AdapterFiles) -> None:
        add(bank, files)
        bank._factors[files.digest] = {
            name: (a, 2 * b) for name, (a, b) in bank._factors[files.digest].items()
        }

    monkeypatch.setattr(AdapterBank, "add", twice_as_strong)
    with pytest.raises(VerificationError, match="does not say what its files say"):
        rig.served.swap("production", versions[1])


def test_a_swap_between_versions_that_hardly_differ_is_caught_when_it_does_nothing(
    shared_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By less than the tolerance: a removal may move the outputs on public text by that little."""
    config = stories_config(shared_models)
    model = write_export(tmp_path / "a", config, seed=0)
    tensors = model.tensors()
    nudged = {name: tensor * (1 + 1e-4) for name, tensor in tensors.items()}
    export_adapter(tmp_path / "b", model, nudged, config, ())
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    with running(config, {"production": first}) as rig:
        before = rig.served.fingerprint("production")
        after = rig.served.swap("production", second)
        assert 0 < after.distance(before) < 1e-3
        assert after.agrees_with(before)

        def add(bank: AdapterBank, files: AdapterFiles) -> None:
            bank._factors[files.digest] = bank._factors[second.digest]

        monkeypatch.setattr(AdapterBank, "add", add)
        with pytest.raises(VerificationError, match="did nothing"):
            rig.served.swap("production", first)


def test_versions_that_say_the_same_are_swapped(shared_models: Path, tmp_path: Path) -> None:
    """Two versions with B = 0 differ in A alone."""
    config = stories_config(shared_models)
    files = []
    for seed in range(2):
        model = write_export(tmp_path / str(seed), config, seed=seed)
        tensors = {
            name: torch.zeros_like(tensor) if name.endswith("lora_b") else tensor
            for name, tensor in model.tensors().items()
        }
        export_adapter(tmp_path / str(seed), model, tensors, config, ())
        files.append(read(tmp_path / str(seed)))
    with running(config, {"production": files[0]}) as rig:
        before = rig.served.catalogue.state("production").fingerprint
        assert rig.served.swap("production", files[1]) == before
        assert digest_of(rig) == files[1].digest


def test_an_adapter_that_does_not_fit_leaves_the_one_before(
    rig: Rig, versions: list[AdapterFiles], tmp_path: Path
) -> None:
    before = answer(rig)
    write_export(
        tmp_path / "minilm", minilm_config(), seed=0, modules=("query",), labels=("a", "b")
    )
    a, b = versions[1].factors["model.layers.0.self_attn.q_proj"]
    for wrong, message in (
        (read(tmp_path / "minilm"), "for another task"),
        (replace(versions[1], digest="1" * 64, factors={"model.layer": (a, b)}), "no module"),
        (
            replace(versions[1], digest="2" * 64, factors={"model.norm": (a, b)}),
            "is not linear",
        ),
        (
            replace(
                versions[1],
                digest="3" * 64,
                factors={"model.layers.0.self_attn.k_proj": (a, b)},
            ),
            "the base model's is 32 x 64",
        ),
        (
            replace(
                versions[1],
                digest="4" * 64,
                factors={"model.layers.0.self_attn.q_proj": (1e30 * a, 1e30 * b)},
            ),
            "not finite",
        ),
    ):
        with pytest.raises(AdapterError, match=message):
            rig.served.swap("production", wrong)
        rig.served.thread.call(lambda: None).result()
        assert rig.served.model.bank.digests == {versions[0].digest}
    assert answer(rig) == before


def test_a_caller_that_hangs_up_costs_no_step(
    rig: Rig, versions: list[AdapterFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = versions[0].digest
    steps: list[Any] = []
    monkeypatch.setattr(rig.served.model, "next_logits", lambda *args: steps.append(args))
    port = int(rig.url.rpartition(":")[2])
    for stream in (True, False):
        body = json.dumps(
            {"model": "production", "prompt": PROMPT, "max_tokens": 400, "stream": stream}
        ).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        with Gate(rig.served):
            with socket.create_connection(("127.0.0.1", port)) as caller:
                caller.sendall(head.encode() + body)
                _until(lambda: rig.served.catalogue.num_requests(old) == 1)
            # Nobody has seen a token yet, and the model has made none.
            _until(lambda: rig.served.catalogue.num_requests(old) == 0)
        _until(lambda: not rig.served.answering.has_work())
    assert not steps
