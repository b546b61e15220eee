"""audit.json and audit.html: what an audit found, for programs and for people."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field

from fedpeft.federated.audit_adapter import AdapterAudit
from fedpeft.federated.audit_mechanism import MechanismAudit
from fedpeft.federated.audit_membership import MembershipReport
from fedpeft.federated.audit_run import RunAudit
from fedpeft.files import write_text
from fedpeft.report import audit_plots, text
from fedpeft.report.html import Table, Tile, toml_like
from fedpeft.report.page import house_style_sheet, template

JSON_NAME = "audit.json"
HTML_NAME = "audit.html"

_MAX_ID_LENGTH = 60


class AuditReport(BaseModel):
    """An audit; which parts it has depends on what was asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(default=1, description="Raised when readers must change.")
    name: str = Field(description="Title.")
    created_at: str = Field(description="UTC, ISO 8601.")
    mechanism: MechanismAudit | None = Field(
        default=None, description="The installed mechanism against canary gradients."
    )
    run: RunAudit | None = Field(default=None, description="A configured run with canary rows.")
    adapter: AdapterAudit | None = Field(default=None, description="A finished run's adapter.")
    insecure_seeded_noise: bool = Field(
        default=False, description="True: the noise of the run came from its seed."
    )
    config: dict[str, Any] = Field(description="The run's configuration; empty without one.")
    versions: dict[str, str] = Field(description="Of what took part.")
    seconds: float = Field(description="Wall-clock seconds.")

    @property
    def failures(self) -> tuple[str, ...]:
        """What contradicts the claim; empty where nothing does."""
        return (
            *(self.mechanism.failures if self.mechanism else ()),
            *(self.run.failures if self.run else ()),
        )

    @property
    def membership(self) -> tuple[MembershipReport, ...]:
        """Membership inference on real rows, where there was any."""
        part = self.run or self.adapter
        return part.membership if part else ()

    @property
    def delta(self) -> float:
        """The delta of every epsilon in the report."""
        part = self.mechanism or self.run or self.adapter
        assert part is not None
        return part.delta


def write_audit(report: AuditReport, directory: Path) -> None:
    """Writes audit.json and audit.html into a folder, which is made if it is missing."""
    contents = {JSON_NAME: audit_json(report), HTML_NAME: audit_html(report)}
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_text(directory / name, content)


def audit_json(report: AuditReport) -> str:
    """The report as strict JSON.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    content = json.loads(json.dumps(report.model_dump(mode="python"), allow_nan=False))
    content["failures"] = list(report.failures)
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def audit_html(report: AuditReport) -> str:
    """The report as one self-contained page, in the style of the run's own report."""
    return template("audit.html.j2").render(
        style=house_style_sheet(),
        report=report,
        created_at=report.created_at.replace("T", " ").removesuffix("+00:00"),
        tiles=_tiles(report),
        bars=_markup(audit_plots.epsilon_bars_svg(report.mechanism, report.run)),
        roc=_markup(audit_plots.roc_svg(report.membership, _claim(report), report.delta)),
        histograms=[Markup(svg) for svg in _histograms(report)],  # noqa: S704
        attacks=_attacks(report),
        checks=report.mechanism.checks if report.mechanism else (),
        membership=_membership(report.membership),
        config=toml_like(report.config) if report.config else "",
    )


def bound_lines(report: AuditReport) -> Iterator[tuple[str, str]]:
    """Every lower bound on epsilon beside its claim: a title and a sentence."""
    if report.mechanism:
        found = report.mechanism
        at = f"claimed {text.epsilon(found.epsilon_upper)} at δ = {text.delta(found.delta)}"
        counts = f"{found.one_run.num_correct} of {found.one_run.num_guesses} guesses correct"
        yield (
            "mechanism",
            (f"ε ≥ {lower(found.one_run.epsilon_lower)} without assumptions ({counts}); {at}"),
        )
        noise = found.effective_noise
        most = noise.noise_multiplier_upper
        multiplier = "not bounded" if most is None else f"at most {most:.3f}"
        yield (
            "effective noise",
            (
                f"ε ≥ {lower(noise.epsilon_lower)} for independent canaries; noise multiplier "
                f"{multiplier}, claimed {found.noise_multiplier:.3f}"
            ),
        )
        passed = sum(check.passed for check in found.checks)
        yield "black-box checks", f"{passed} of {len(found.checks)} passed"
    if report.run:
        run = report.run
        for attack in run.attacks:
            seen = "all updates" if attack.name == "updates" else "final adapter"
            yield (
                f"canaries, {seen}",
                (
                    f"ε ≥ {lower(attack.bound.epsilon_lower)} ({attack.bound.num_correct} of "
                    f"{attack.bound.num_guesses} guesses correct); {claim(run.epsilon_upper)}"
                ),
            )


def claim(epsilon: float | None) -> str:
    """A claimed epsilon as text, rounded up."""
    return "nothing claimed" if epsilon is None else f"claimed {text.epsilon(epsilon)}"


def lower(epsilon: float) -> str:
    """A lower bound as text, rounded down: what is shown is never more than what was found."""
    return f"{math.floor(epsilon * 100) / 100:.2f}"


def membership_line(found: MembershipReport) -> str:
    """One attack on real rows as a sentence."""
    auc = found.attack.auc
    line = f"AUC {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]"
    for rate in found.attack.rates:
        if rate.false_positive_target == 0.01:
            tpr = rate.true_positive
            line += (
                f", TPR at 1 % FPR {text.percent(tpr.value)} "
                f"[{text.percent(tpr.low)}, {text.percent(tpr.high)}]"
            )
    return line


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)  # noqa: S704


def _claim(report: AuditReport) -> float | None:
    part = report.run or report.adapter
    return part.epsilon_upper if part else None


def _tiles(report: AuditReport) -> list[Tile]:
    tiles = []
    if report.mechanism:
        found = report.mechanism
        bad = bool(found.failures)
        tiles += [
            Tile(
                title="Mechanism",
                value="contradicted" if bad else "not contradicted",
                detail=f"q = {found.sampling_prob:.4g}, σ = {found.noise_multiplier:.4g}, "
                f"{text.count(found.num_steps)} steps",
                alarming=bad,
            ),
            Tile(
                title="ε of the mechanism, at least",
                value=lower(max(found.one_run.epsilon_lower, found.effective_noise.epsilon_lower)),
                detail=claim(found.epsilon_upper),
                alarming=bad,
            ),
        ]
    if report.run:
        run = report.run
        tiles += [
            Tile(
                title="ε of the run, at least",
                value=lower(run.epsilon_lower),
                detail=f"{claim(run.epsilon_upper)}, confidence {text.percent(run.confidence)}",
                alarming=bool(run.failures) or run.epsilon_upper is None,
            ),
            Tile(
                title="Canaries",
                value=text.count(len(run.included)),
                detail=f"among {text.count(run.num_rows)} rows of "
                f"{text.printable(run.client_id, 24)}",
            ),
        ]
    if report.membership:
        auc = report.membership[0].attack.auc
        tiles.append(
            Tile(
                title="Membership AUC",
                value=f"{auc.value:.3f}",
                detail=f"[{auc.low:.3f}, {auc.high:.3f}], 0.5 is chance",
            )
        )
    tiles.append(Tile(title="Time", value=text.duration(report.seconds), detail=""))
    return tiles


def _histograms(report: AuditReport) -> Iterator[str]:
    if report.mechanism:
        yield audit_plots.scores_svg(
            "mechanism",
            "Mechanism: log likelihood ratio of canaries",
            report.mechanism.scores,
            report.mechanism.included,
        )
    if report.run:
        titles = {
            "updates": "Run: how often each canary seems drawn",
            "adapter": "Run: how far each canary's loss fell",
        }
        for attack in report.run.attacks:
            title = titles.get(attack.name, attack.name)
            yield audit_plots.scores_svg(attack.name, title, attack.scores, report.run.included)


def _attacks(report: AuditReport) -> Table:
    return Table(
        columns=["Bound", "Found"],
        rows=[[title, sentence] for title, sentence in bound_lines(report)],
    )


def _membership(reports: tuple[MembershipReport, ...]) -> Table:
    columns = ["Members", "Rows", "Held-out", "AUC", "95 %", "TPR at 1 % FPR", "ε ≥"]
    if reports:
        columns[4] = "Interval"
    return Table(columns=columns, rows=[_membership_row(found) for found in reports])


def _membership_row(found: MembershipReport) -> list[str]:
    attack = found.attack
    at_one = [r for r in attack.rates if r.false_positive_target == 0.01]
    rate = "too few rows"
    if at_one:
        tpr = at_one[0].true_positive
        rate = f"{text.percent(tpr.value)} [{text.percent(tpr.low)}, {text.percent(tpr.high)}]"
    return [
        text.printable(found.members, _MAX_ID_LENGTH),
        text.count(attack.num_members),
        text.count(attack.num_non_members),
        f"{attack.auc.value:.3f}",
        f"{attack.auc.low:.3f} to {attack.auc.high:.3f}",
        rate,
        lower(attack.epsilon_lower),
    ]
