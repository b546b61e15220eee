"""Names that follow aliases of a signed registry: what is served, what is refused, what is said."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from fedpeft.errors import UnavailableError
from fedpeft.identity.authority import Authority
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.roles import Role
from fedpeft.registry.manifest import FILE_NAME
from fedpeft.registry.signing import RegistrySigner
from fedpeft.serving.app import ServingApp
from fedpeft.serving.config import AppConfig
from fedpeft.serving.following import Follower, Following
from fedpeft.serving.http_server import HttpServer
from fedpeft.serving.served import Served
from fedpeft.serving.served_model import ServedModel
from tests.server.holders import Holders
from tests.serving.exports import stories_config, write_export
from tests.serving.signed import SignedRegistry

NAME = "production"


@dataclass(kw_only=True)
class Place:
    """A registry with three versions, and what follows it."""

    registry: SignedRegistry
    served: Served
    follower: Follower
    url: str
    exports: Path
    digests: list[str]

    def answered_by(self) -> str:
        """The version that answers a request; the code of the refusal where none does."""
        found = httpx.post(
            f"{self.url}/v1/completions",
            json={"model": NAME, "prompt": "Once", "temperature": 0, "max_tokens": 2},
            timeout=60,
        ).json()
        said: str = found["error"]["code"] if "error" in found else found["system_fingerprint"]
        return said

    def deploy(self, n: int, *, withdrawn: tuple[int, ...] = ()) -> None:
        """In one moment, as the server's transaction does it."""
        self.registry.withdrawn |= {self.digests[w] for w in withdrawn}
        self.registry.wanted[NAME] = self.digests[n]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory, shared_models: Path) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    for seed in range(3):
        write_export(folder / str(seed), stories_config(shared_models), seed=seed)
    return folder


@pytest.fixture
def place(tmp_path: Path, shared_models: Path, exports: Path) -> Iterator[Place]:
    config = stories_config(shared_models)
    model = ServedModel(config.name, "causal-lm", device="cpu")
    registry = SignedRegistry(tmp_path, model.digest)
    digests = [registry.add(exports / str(n)) for n in range(3)]
    with Served(model) as served:
        app = ServingApp(served, AppConfig(hold_s=30))
        with HttpServer(app.asgi) as server:
            yield Place(
                registry=registry,
                served=served,
                follower=Follower(NAME, registry, served, registry.trust),
                url=f"http://127.0.0.1:{server.port}",
                exports=exports,
                digests=digests,
            )


def test_an_alias_is_followed_and_every_swap_is_said(place: Place) -> None:
    assert place.answered_by() == "not_served"
    fingerprints = []
    for n in (0, 1, 2, 0):
        place.deploy(n)
        place.follower.tick()
        assert place.answered_by() == place.digests[n]
        adapter, fingerprint, problem = place.registry.reported()
        assert (adapter, problem) == (place.digests[n], "")
        assert fingerprint is not None
        fingerprints.append(fingerprint)
    assert fingerprints[0] == fingerprints[3]
    assert fingerprints[1].distance(fingerprints[2]) > 1e-2
    assert place.registry.num_fetched == 4
    place.follower.tick()
    assert place.registry.num_fetched == 4  # nothing has changed


def test_no_such_alias_is_said_and_looked_for_again(place: Place) -> None:
    place.follower.tick()
    assert place.registry.reported() == ("", None, "there is no alias production")
    place.deploy(1)
    place.follower.tick()
    assert place.answered_by() == place.digests[1]


def test_a_withdrawn_version_without_successor_answers_no_more(place: Place) -> None:
    place.deploy(0)
    place.follower.tick()
    place.registry.withdrawn.add(place.digests[0])
    place.follower.tick()
    assert place.answered_by() == "not_served"
    adapter, _, problem = place.registry.reported()
    assert (adapter, problem) == ("", f"version {place.digests[0][:12]} was withdrawn")
    by_digest = httpx.post(
        f"{place.url}/v1/completions", json={"model": place.digests[0], "prompt": "a"}
    )
    assert by_digest.status_code == 410
    for _ in range(3):  # nor does it come back by itself
        place.follower.tick()
    assert place.registry.num_fetched == 1
    assert place.answered_by() == "not_served"
    place.deploy(2)
    place.follower.tick()
    assert place.answered_by() == place.digests[2]


def test_requests_wait_for_the_successor_of_a_withdrawn_version(place: Place) -> None:
    """None of them is dropped, and none is answered by what was withdrawn."""
    place.deploy(0)
    place.follower.tick()
    place.deploy(1, withdrawn=(0,))
    fetch = place.registry.fetch
    answered: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        asking = []

        def fetch_while_asked(digest: str, folder: Path) -> None:
            state = place.served.catalogue.state(NAME)
            assert state.is_held
            asking.extend(pool.submit(place.answered_by) for _ in range(4))
            # All four are there before the successor is.
            health = httpx.get(f"{place.url}/health").json()
            assert health["models"][NAME]["waiting"]
            fetch(digest, folder)

        place.registry.fetch = fetch_while_asked  # type: ignore[method-assign]
        place.follower.tick()
        answered = [future.result() for future in asking]
    assert answered == [place.digests[1]] * 4


@pytest.mark.parametrize("call", ["is_withdrawn", "follow"])
def test_a_withdrawal_between_two_questions_drops_nothing(place: Place, call: str) -> None:
    """The alias moves and its version is withdrawn right before, or right after, a question."""
    place.deploy(0)
    place.follower.tick()
    original = getattr(place.registry, call)
    held: list[bool] = []
    fetch = place.registry.fetch

    def moved_meanwhile(*args: str, **report: str) -> object:
        answer = original(*args, **report)
        setattr(place.registry, call, original)
        place.deploy(1, withdrawn=(0,))
        return answer

    def fetched(digest: str, folder: Path) -> None:
        held.append(place.served.catalogue.state(NAME).is_held)
        fetch(digest, folder)

    setattr(place.registry, call, moved_meanwhile)
    place.registry.fetch = fetched  # type: ignore[method-assign]
    place.follower.tick()
    assert place.served.catalogue.state(NAME).version is not None  # never closed
    place.follower.tick()
    assert place.answered_by() == place.digests[1]
    assert held == [True]


def test_requests_go_on_waiting_while_the_server_is_away(place: Place) -> None:
    place.deploy(0)
    place.follower.tick()
    place.deploy(1, withdrawn=(0,))
    fetch = place.registry.fetch

    def unreachable(digest: str, folder: Path) -> None:
        raise UnavailableError("the server cannot be reached")

    place.registry.fetch = unreachable  # type: ignore[method-assign]
    place.follower.tick()
    assert place.served.catalogue.state(NAME).is_held
    assert place.registry.reported() == ("", None, "the server cannot be reached")
    place.registry.fetch = fetch  # type: ignore[method-assign]
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(place.answered_by)
        place.follower.tick()
        assert asking.result() == place.digests[1]


def test_an_unreachable_server_leaves_what_is_served(place: Place) -> None:
    place.deploy(0)
    place.follower.tick()
    place.registry.is_down = True
    place.deploy(1)
    place.follower.tick()
    assert place.answered_by() == place.digests[0]
    place.registry.is_down = False
    place.follower.tick()
    assert place.answered_by() == place.digests[1]


def unsigned(place: Place, folder: Path) -> None:
    (folder / FILE_NAME).unlink()


def altered_weights(place: Place, folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(path).items()}, path)


def altered_scaling(place: Place, folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 64}))


def altered_manifest(place: Place, folder: Path) -> None:
    path = folder / FILE_NAME
    path.write_text(path.read_text().replace("somewhere", "elsewhere"))


def a_file_more(place: Place, folder: Path) -> None:
    (folder / "model.py").write_text("import os")


def a_file_less(place: Place, folder: Path) -> None:
    (folder / "fedpeft.json").unlink()


def another_version(place: Place, folder: Path) -> None:
    for path in place.registry.path(place.digests[2]).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def signed_by_a_client(place: Place, folder: Path) -> None:
    """A member of the federation, but no server."""
    holders = Holders(place.registry.folder / "others")
    holders.ca = place.registry.folder / "pki" / "ca"
    holders.authority = Authority(holders.ca)
    _sign_as(place, Credentials.in_folder(holders.issue("client", Role.DATA_OWNER)))


def signed_elsewhere(place: Place, folder: Path) -> None:
    """A server, of another federation."""
    holders = Holders(place.registry.folder / "others")
    _sign_as(place, Credentials.in_folder(holders.issue("server", Role.SERVER, hosts=("a",))))


def _sign_as(place: Place, credentials: Credentials) -> None:
    own = place.registry.signer
    (place.registry.folder / "others" / "registry").mkdir()
    place.registry.signer = RegistrySigner.open(
        place.registry.folder / "others" / "registry",
        server_key=credentials.key,
        certificate=credentials.certificate,
    )
    place.registry.add(place.exports / "1")
    place.registry.signer = own


def for_another_base_model(place: Place, folder: Path) -> None:
    place.registry.add(place.exports / "1", base_digest="e" * 64)


def for_other_tensors(place: Place, folder: Path) -> None:
    """Signed, but the manifest is not that of these tensors."""
    for path in place.registry.path(place.digests[2]).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    exports = place.registry.folder / "mixed"
    exports.mkdir()
    for path in folder.iterdir():
        (exports / path.name).write_bytes(path.read_bytes())
    place.registry.add(exports, digest=place.digests[1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (unsigned, "is not signed"),
        (altered_weights, "is not what was signed"),
        (altered_scaling, "is not what was signed"),
        (altered_manifest, "was altered after it was signed"),
        (a_file_more, "does not belong to the version"),
        (a_file_less, "is missing"),
        (another_version, "got a manifest of version"),
        (signed_by_a_client, "is no server of the federation"),
        (signed_elsewhere, "is not believed"),
        (for_another_base_model, "is for the base model somewhere/else"),
        (for_other_tensors, "the manifest says"),
    ],
)
def test_what_may_not_be_served_is_not(
    place: Place, damage: Callable[[Place, Path], None], said: str
) -> None:
    place.deploy(0)
    place.follower.tick()
    damage(place, place.registry.path(place.digests[1]))
    place.deploy(1)
    place.follower.tick()
    assert place.answered_by() == place.digests[0]
    adapter, _, problem = place.registry.reported()
    assert adapter == place.digests[0]
    assert said in problem
    # Mended, it is served: asked for again, though not every second.
    for path in place.exports.joinpath("1").iterdir():
        if path.name != FILE_NAME:
            place.registry.path(place.digests[1]).joinpath(path.name).write_bytes(path.read_bytes())
    (place.registry.path(place.digests[1]) / "model.py").unlink(missing_ok=True)
    place.registry.add(place.exports / "1")
    place.follower.tick()
    assert place.registry.num_fetched == 2
    for _ in range(3):
        place.follower.tick()
    assert place.answered_by() == place.digests[1]
    assert place.registry.reported()[2] == ""


def test_a_successor_that_may_not_be_served_closes_the_name(place: Place) -> None:
    """The version before is withdrawn, so that it is no way out."""
    place.deploy(0)
    place.follower.tick()
    unsigned(place, place.registry.path(place.digests[1]))
    place.deploy(1, withdrawn=(0,))
    place.follower.tick()
    assert place.answered_by() == "not_served"
    adapter, _, problem = place.registry.reported()
    assert adapter == ""
    assert "is not signed" in problem


def test_the_thread_goes_on_after_a_defect(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.deploy(0)
    follow = place.registry.follow
    calls = []

    def broken_once(name: str, **report: str) -> str:
        calls.append(name)
        if len(calls) == 1:
            raise RuntimeError("a defect")
        return follow(name, **report)

    place.registry.follow = broken_once  # type: ignore[assignment, method-assign]
    with Following([place.follower], poll_s=0.001):
        change = place.served.catalogue.change()
        if place.served.catalogue.state(NAME).version is None:
            change.result(60)
    assert place.answered_by() == place.digests[0]
    assert "a defect of ours" in caplog.text
