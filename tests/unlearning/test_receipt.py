"""Receipts: made, signed, verified offline, and what none can be made of."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fedpeft.canonical import canonical
from fedpeft.dp.accounting import epsilon
from fedpeft.dp.events import DpSgdEvent
from fedpeft.errors import PrivacyError, ProtocolError, VerificationError
from fedpeft.identity.credentials import Credentials
from fedpeft.identity.roles import Role
from fedpeft.registry.signing import RegistrySigner
from fedpeft.registry.trust import RegistryTrust
from fedpeft.report.receipt import receipt_html
from fedpeft.unlearning.gate.config import GateConfig
from fedpeft.unlearning.gate.report import GateReport
from fedpeft.unlearning.order import JobOrder, JobResult, check_answers
from fedpeft.unlearning.plan import RemovalPlan
from fedpeft.unlearning.receipt import (
    KIND,
    Receipt,
    Request,
    make_receipt,
    receipt_digest,
    verify_receipt,
)
from tests.server.holders import Holders
from tests.unlearning.shown import KNOWN, decided, seen, shown

ADAPTER, LATER, SUCCESSOR = "a" * 64, "b" * 64, "c" * 64
NOW = datetime(2026, 11, 26, 14, 0, tzinfo=UTC)
SCRIPT = "<script>alert(1)</script>"


def request(client_id: str = "clinic-1") -> Request:
    return Request(
        request_id="0123456789abcdef",
        client_id=client_id,
        requested_by="clinic-1",
        requested_at=NOW,
        num_records=20,
        records_digest="d" * 64,
    )


def plan(**change: Any) -> RemovalPlan:
    fields: dict[str, Any] = {
        "adapter": ADAPTER,
        "affected": (ADAPTER, LATER),
        "aliases": ("production",),
        "method": "loku",
        "claim": "approximate",
        "guarantee": "none",
        "gate": GateConfig().model_dump(mode="json"),
    }
    return RemovalPlan.model_validate(fields | change)


def result(given: GateReport | None = None, **change: Any) -> JobResult:
    fields: dict[str, Any] = {
        "parent": ADAPTER,
        "digest": SUCCESSOR,
        "method": "loku",
        "claim": "approximate",
        "adapter": {"rank": 24},
        "lost": 0.0125,
        "seconds": {"method": 1.5},
        "gate": (given or decided()).model_dump(),
        "fingerprint": {},
    }
    return JobResult.model_validate(fields | change)


ADAPTED = {"rank": 8, "target_modules": ["q"]}
STATED: Mapping[str, Any] = {
    "epsilon": epsilon([DpSgdEvent(noise_multiplier=2.0, sampling_prob=0.25, num_steps=20)], 1e-5),
    "epsilon_spent": 3.5,
    "delta": 1e-5,
    "noise_multiplier": 2.0,
    "sampling_prob": 0.25,
    "num_steps": 20,
    "l2_clip_norm": 1.0,
}


def private(**change: Any) -> JobResult:
    """A private job's result: no figure in it."""
    stated = dict(STATED) | change
    return result(lost=0.0, seconds={}, gate=None, privacy=stated, adapter=ADAPTED)


def made(**change: Any) -> Receipt:
    fields: dict[str, Any] = {
        "affected": (ADAPTER, LATER),
        "aliases": ("production",),
        "successor": SUCCESSOR,
        "result": result(),
        "measured_by": "server",
        "epsilon": {},
        "audit_head": "41:" + "e" * 64,
        "created_at": NOW,
    }
    parts = {"request": request(), "plan": plan()} | fields | change
    return make_receipt(parts.pop("request"), parts.pop("plan"), **parts)


RETRAINED: Mapping[str, Any] = {
    "plan": plan(method="retrain", claim="exact"),
    "result": None,
    "measured_by": "nobody",
}
CHARGED: Mapping[str, Any] = {
    "plan": plan(guarantee="charged"),
    "result": private(),
    "measured_by": "nobody",
    "epsilon": {"clinic-1": (3.5, 1e-5), "clinic-2": (1.0, 1e-5)},
}
VOID: Mapping[str, Any] = {
    "plan": plan(guarantee="void"),
    "epsilon": {"clinic-2": (1.0, 1e-5)},
}


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    folder = tmp_path_factory.mktemp("pki")
    issued = Holders(folder).issue("coordinator", Role.SERVER, hosts=("localhost",))
    return Credentials.in_folder(issued)


@pytest.fixture(scope="module")
def signer(credentials: Credentials, tmp_path_factory: pytest.TempPathFactory) -> RegistrySigner:
    return RegistrySigner.open(
        tmp_path_factory.mktemp("registry"),
        server_key=credentials.key,
        certificate=credentials.certificate,
    )


@pytest.mark.parametrize(
    "change", [{}, RETRAINED, CHARGED, VOID], ids=["plain", "retrained", "charged", "void"]
)
def test_a_receipt_is_verified_offline(
    change: Mapping[str, Any], credentials: Credentials, signer: RegistrySigner
) -> None:
    receipt = made(**change)
    body = receipt.to_body()
    document = signer.sign(KIND, body | {"created_at": datetime.now(UTC).isoformat()})
    with pytest.raises(VerificationError, match="not written as receipts are"):
        verify_receipt(document, RegistryTrust.of_authority(credentials.authority))
    receipt = made(**change, created_at=datetime.now(UTC))
    document = signer.sign(KIND, receipt.to_body())
    for trust in (
        RegistryTrust.of_authority(credentials.authority),
        RegistryTrust.of_key(signer.public_key_pem),
    ):
        assert verify_receipt(document, trust) == receipt
    assert receipt_digest(document + "\n") == receipt_digest(document)


def test_what_was_altered_is_not_believed(signer: RegistrySigner) -> None:
    document = signer.sign(KIND, made().to_body())
    trust = RegistryTrust.of_key(signer.public_key_pem)
    verify_receipt(document, trust)
    for name, value in (
        ("affected", [ADAPTER]),
        ("claim", "exact"),
        ("limits", ["none"]),
        ("successor", "f" * 64),
    ):
        read = json.loads(document)
        read["body"][name] = value
        with pytest.raises(VerificationError, match="altered"):
            verify_receipt(canonical(read), trust)


def test_it_says_what_was_done() -> None:
    receipt = made()
    assert receipt.affected == (ADAPTER, LATER)
    assert (receipt.adapter, receipt.successor, receipt.aliases) == (
        ADAPTER,
        SUCCESSOR,
        ("production",),
    )
    assert (receipt.method, receipt.claim, receipt.rank, receipt.lost) == (
        "loku",
        "approximate",
        24,
        0.0125,
    )
    assert receipt.gate is not None
    assert receipt.gate.passed
    assert receipt.gate.thresholds == GateConfig()


def test_versions_that_came_after_the_plan_are_in_it() -> None:
    newest = "9" * 64
    assert made(affected=(LATER, newest)).affected == (ADAPTER, LATER, newest)


def test_the_limits_are_said() -> None:
    def said(*parts: str, **change: Any) -> None:
        text = "\n".join(made(**change).limits)
        for part in parts:
            assert part in text

    said("no proof that nothing of them is left", "vLLM", "The base model is not changed")
    said("The successor took 6 steps; a model that never saw them: 8 steps")
    said("Nothing was measured at bf16, int8: do not serve it so")
    said("there was none", "int4 stand for plain rounding")
    overdone = decided({"fp32": seen(shown(forget=9.0, seed=2))})
    said("whoever has a record can see that it was removed", result=result(overdone))
    assert "can see that it was removed" not in "".join(made().limits)
    said("measured the result itself", measured_by="client")
    said("added the noise and charged its ledger", "No figure is stated", **CHARGED)
    said("nothing says how much of the records they took away", **CHARGED)
    assert "until the measures no longer find" not in "".join(made(**CHARGED).limits)
    said("without noise; no epsilon covers them", **VOID)
    said("the operator gave it up", **VOID)
    said("rests on each client", "Nobody measured", **RETRAINED)
    said("had a privacy guarantee", **VOID)
    without = shown(held_out=None, seed=2)
    gate = decided(
        {
            "fp32": seen(
                without,
                before=shown(forget=KNOWN, held_out=None, seed=1),
                base=shown(held_out=None, seed=3),
            )
        }
    )
    said("Not measured: membership AUC", result=result(gate))


@pytest.mark.parametrize(
    ("match", "change"),
    [
        (
            "successor is one of the affected",
            {"successor": ADAPTER, "result": result(digest=ADAPTER)},
        ),
        ("did not pass the gate", {"result": result(decided(same_tensors=True))}),
        ("is measured, or private", {"result": None, "measured_by": "nobody"}),
        ("is measured, or private", {"result": private(), "measured_by": "nobody"}),
        ("is measured, or private", CHARGED | {"result": result(), "measured_by": "client"}),
        ("states its noise", CHARGED | {"result": None}),
        ("less epsilon", CHARGED | {"epsilon": {"clinic-1": (3.4, 1e-5)}}),
        ("less epsilon", CHARGED | {"epsilon": {"clinic-2": (9.0, 1e-5)}}),
        ("who measured", {"measured_by": "nobody"}),
        ("who measured", RETRAINED | {"measured_by": "server"}),
        ("the result is of loku", {"successor": "f" * 64}),
        ("the result is of npo", {"result": result(method="npo")}),
        ("the result is of loku", {"plan": plan(method="retrain", claim="exact")}),
        (
            "registered in the plan",
            {"result": result(decided(config=GateConfig(max_remaining=0.9)))},
        ),
        ("an epsilon belongs", {"epsilon": {"clinic-1": (1.0, 1e-5)}}),
        ("less epsilon", CHARGED | {"epsilon": {}}),
        (
            "an epsilon belongs",
            RETRAINED | {"plan": plan(method="retrain", claim="exact", guarantee="charged")},
        ),
        ("given up, and an epsilon", VOID | {"epsilon": {"clinic-1": (1.0, 1e-5)}}),
        ("epsilon", CHARGED | {"epsilon": {"clinic-1": (float("nan"), 1e-5)}}),
        ("affected", {"affected": (LATER, "no digest")}),
        ("audit_head", {"audit_head": "41"}),
        ("created_at", {"created_at": datetime(2026, 1, 1)}),
    ],
)
def test_what_does_not_fit_together_is_no_receipt(match: str, change: Mapping[str, Any]) -> None:
    with pytest.raises(VerificationError, match=match):
        made(**change)


def test_a_body_that_was_never_written_so_is_refused() -> None:
    body = made(**CHARGED).to_body()
    assert Receipt.from_body(body) == made(**CHARGED)
    canonical(body)
    for change in (
        {"affected": []},
        {"affected": [LATER]},
        {"more": 1},
        {"version": 2},
        {"lost": "0.01250"},
        {"rank": "24"},
        {"limits": []},
    ):
        with pytest.raises(VerificationError):
            Receipt.from_body(body | change)
    del body["affected"]
    with pytest.raises(VerificationError, match="affected"):
        Receipt.from_body(body)


def order(**change: Any) -> JobOrder:
    fields: dict[str, Any] = {
        "request_id": "0123456789abcdef",
        "run_config": {"privacy": {"delta": 1e-5}, "adapter": ADAPTED},
        "base_digest": "f" * 64,
        "labels": (),
        "method": "loku",
        "num_records": 20,
        "precisions": ("fp32", "int4"),
        "seed": 1,
    }
    return JobOrder.model_validate(fields | change)


CHARGED_ORDER = order(guarantee="charged", settings={"private": {"epsilon": 5.0}})


def test_a_result_answers_its_order() -> None:
    check_answers(order(), result())
    failed = result(decided({"fp32": seen(shown(forget=KNOWN, seed=5))}))
    check_answers(order(), failed)  # it says why it failed, and is not published
    for match, asked, made_ in (
        ("a result of npo, got one of loku", order(method="npo"), result()),
        ("not measured at bf16", order(precisions=("fp32", "bf16", "int4")), result()),
        ("other thresholds", order(settings={"gate": {"max_remaining": 0.1}}), result()),
        ("private job", CHARGED_ORDER, result()),
        ("private job", order(), private()),
    ):
        with pytest.raises(ProtocolError, match=match):
            check_answers(asked, made_)


@pytest.mark.parametrize("factor", [2 / 3, 1.0, 3 / 2])
def test_nobodys_epsilon_is_stated_lower_than_its_noise_costs(factor: float) -> None:
    """What sigma of 2 costs: stated for a sigma of 2 or more it may be, for less it may not."""
    stated = private(noise_multiplier=2.0 * factor)
    if factor < 1:
        with pytest.raises(PrivacyError, match="reported lower than what was released"):
            check_answers(CHARGED_ORDER, stated)
    else:
        check_answers(CHARGED_ORDER, stated)


@pytest.mark.parametrize(
    "change",
    [
        {"num_steps": 19},
        {"sampling_prob": 0.26},
        {"l2_clip_norm": 2.0},
        {"delta": 1e-6},
        {"epsilon": 5.1, "epsilon_spent": 5.1},
    ],
)
def test_a_statement_of_another_job_is_refused(change: Mapping[str, Any]) -> None:
    with pytest.raises(PrivacyError, match="the job was to"):
        check_answers(CHARGED_ORDER, private(**change))


@pytest.mark.parametrize("name", list(STATED))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, None])
def test_a_statement_has_numbers(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        private(**{name: value})


def test_less_in_all_than_alone_is_no_statement() -> None:
    with pytest.raises(ValidationError, match="less was spent in all"):
        private(epsilon_spent=STATED["epsilon"] * 0.999)


@pytest.mark.parametrize(
    "more",
    [{"gate": decided().model_dump()}, {"seconds": {"steps": 1.0}}, {"lost": 0.1}],
    ids=["gate", "seconds", "lost"],
)
def test_a_private_result_holds_nothing_that_is_computed_from_rows(more: Mapping[str, Any]) -> None:
    fields = json.loads(private().to_json())
    with pytest.raises(ProtocolError, match=r"measured or private|nothing more"):
        JobResult.from_json(json.dumps(fields | more))


def test_a_private_successor_keeps_rank_and_modules() -> None:
    other = private().model_copy(update={"adapter": ADAPTED | {"rank": 9}})
    with pytest.raises(ProtocolError, match="keeps the adapter's rank"):
        check_answers(CHARGED_ORDER, other)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


@pytest.mark.parametrize(
    "change", [{}, RETRAINED, CHARGED, VOID], ids=["plain", "retrained", "charged", "void"]
)
def test_the_page_shows_it_and_runs_nothing(change: Mapping[str, Any]) -> None:
    hostile = request(f"clinic-1{SCRIPT}\x1b[31m")
    own = {} if "epsilon" not in change else change["epsilon"] | {hostile.client_id: (3.5, 1e-5)}
    if change is VOID:
        own = VOID["epsilon"]
    receipt = made(**change | {"request": hostile, "epsilon": own})
    page = receipt_html(receipt)
    tags = _Tags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert "\x1b" not in page
    for said in (ADAPTER, LATER, SUCCESSOR, receipt.claim, receipt.request.records_digest):
        assert said in page
    assert page.count("<li>") == len(receipt.limits)
    if receipt.gate is not None:
        assert "memorization accuracy" in page
        assert "int4" in page
    assert ("given up" in page) == (receipt.guarantee == "void")


def test_another_authority_is_not_believed(tmp_path: Path, signer: RegistrySigner) -> None:
    """Another authority's word does not count."""
    other = Credentials.in_folder(
        Holders(tmp_path).issue("coordinator", Role.SERVER, hosts=("localhost",))
    )
    document = signer.sign(KIND, made(created_at=datetime.now(UTC)).to_body())
    with pytest.raises(VerificationError):
        verify_receipt(document, RegistryTrust.of_authority(other.authority))
