"""report.html: one self-contained page that works offline, on paper and in the dark.

Client ids, labels and notes are untrusted. Everything in the page is escaped by the template,
except for the figures, which are XML that `inline_svg` has parsed and written again.
"""

import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import jinja2
from markupsafe import Markup

from fedpeft.report import plots, text
from fedpeft.report.guarantee import banners, budget_of_max, guarantee, max_epsilon
from fedpeft.report.schema import ClientReport, Report, RoundReport

_METRICS = ("accuracy", "token_accuracy", "perplexity", "loss")
_SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
_MAX_OPEN_ROWS = 40
_MAX_ID_LENGTH = 60


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One headline number."""

    title: str
    value: str
    detail: str
    alarming: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with the first column left-aligned and the others as numbers."""

    columns: list[str]
    rows: list[list[str]]

    @property
    def is_open(self) -> bool:
        """Whether the page shows it unfolded."""
        return len(self.rows) <= _MAX_OPEN_ROWS


def render_html(report: Report) -> str:
    """The report as an HTML page with its style and figures inside.

    Args:
        report: The run.

    Returns:
        A document that refers to nothing outside of itself and runs no script. The same
        report gives the same text.
    """
    return _template().render(
        report=report,
        created_at=report.created_at.replace("T", " ").removesuffix("Z").removesuffix("+00:00"),
        banners=banners(report),
        guarantee=guarantee(report),
        tiles=_tiles(report),
        curves=_figures(
            [
                *(plots.metric_svg(report, name) for name in _curves(report)),
                plots.epsilon_svg(report),
            ]
        ),
        partition=Markup(plots.partition_svg(report)),  # noqa: S704
        round_figures=_figures(
            [
                plots.update_norms_svg(report),
                plots.bytes_svg(report),
                *plots.diagnostics_svgs(report),
            ]
        ),
        clients=_clients(report),
        rounds=_rounds(report),
        scores=_scores(report),
        config=toml_like(report.config),
    )


def toml_like(config: Mapping[str, Any]) -> str:
    """A nested mapping in the looks of TOML; null, which TOML lacks, becomes a comment."""
    lines: list[str] = []
    _add_section(lines, config, "")
    return "\n".join(lines).strip() + "\n"


@cache
def _template() -> jinja2.Template:
    source = importlib.resources.files("fedpeft.report").joinpath("report.html.j2")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        count=text.count,
        duration=text.duration,
        number=text.number,
        printable=text.printable,
        size=text.size,
    )
    return environment.from_string(source.read_text(encoding="utf-8"))


def _figures(figures: Iterable[str | None]) -> list[Markup]:
    return [Markup(figure) for figure in figures if figure is not None]  # noqa: S704


def _curves(report: Report) -> list[str]:
    return ["accuracy" if "accuracy" in report.evaluation.metrics else "perplexity", "loss"]


def _headline_metric(metrics: Mapping[str, float]) -> str:
    return next((n for n in ("accuracy", "perplexity", "loss") if n in metrics), "loss")


def _tiles(report: Report) -> list[Tile]:
    evaluation, adapter = report.evaluation, report.adapter
    name = _headline_metric(evaluation.metrics)
    details = []
    if name in evaluation.initial_metrics:
        details.append(f"from {text.metric(name, evaluation.initial_metrics[name])}")
    if name == "accuracy" and evaluation.majority_accuracy is not None:
        details.append(f"majority class {text.percent(evaluation.majority_accuracy)}")
    final = evaluation.metrics.get(name)
    charged = sum(c.charged_steps for c in report.clients)
    examples = sum(c.num_examples for c in report.clients)
    return [
        Tile(
            title=f"Held-out {name}",
            value="none" if final is None else text.metric(name, final),
            detail=", ".join(details),
        ),
        _privacy_tile(report),
        Tile(
            title="Clients",
            value=text.count(len(report.clients)),
            detail=f"{text.count(examples)} training rows",
        ),
        Tile(
            title="Rounds",
            value=text.count(len(report.rounds)),
            detail=f"{text.count(charged)} charged releases",
        ),
        Tile(
            title="Time",
            value=text.duration(report.seconds.total),
            detail=f"{text.duration(report.seconds.training)} of it training",
        ),
        Tile(
            title="Adapter",
            value=text.printable(adapter.digest.removeprefix("sha256:")[:12]),
            detail=f"rank {adapter.rank}, {text.count(adapter.num_trainable_parameters)} "
            "trained numbers",
        ),
    ]


def _privacy_tile(report: Report) -> Tile:
    privacy, highest = report.privacy, max_epsilon(report)
    if not privacy.enabled:
        return Tile(title="Privacy", value="none", detail="noise was off", alarming=True)
    spent = "unknown" if highest is None else text.epsilon(highest)
    budget = budget_of_max(report)
    of = f" / {text.budget(budget)}" if budget is not None else ""
    at = f" at δ = {text.delta(privacy.delta)}" if privacy.delta is not None else ""
    return Tile(
        title="Largest ε spent",
        value=spent + of,
        detail=f"per client{at}",
        alarming=bool(banners(report)),
    )


def _clients(report: Report) -> Table:
    columns = ["Client", "Rows", "Weight", "q", _SIGMA, "Releases planned", "charged", "ε"]
    return Table(
        columns=[*columns, "Non-finite"],
        rows=[_client_row(client) for client in report.clients],
    )


def _client_row(client: ClientReport) -> list[str]:
    noise = client.noise_multiplier
    return [
        text.printable(client.client_id, _MAX_ID_LENGTH),
        text.count(client.num_examples),
        f"{client.weight:.4f}",
        f"{client.sampling_prob:.4f}",
        "off" if noise is None else f"{noise:.3f}",
        text.count(client.planned_steps),
        text.count(client.charged_steps),
        "none" if client.epsilon is None else text.epsilon(client.epsilon),
        text.count(client.num_nonfinite_examples),
    ]


def _rounds(report: Report) -> Table:
    names = [m for m in _METRICS if any(r.metrics and m in r.metrics for r in report.rounds)]
    titles = [name.replace("_", " ").capitalize() for name in names]
    extra = ["Largest ε"] if report.privacy.enabled else []
    columns = ["Round", "Clients", *titles, *extra, "Update norm", "Sent up", "Sent down", "Time"]
    return Table(columns=columns, rows=[_round_row(report, r, names) for r in report.rounds])


def _round_row(report: Report, entry: RoundReport, names: list[str]) -> list[str]:
    metrics = entry.metrics or {}
    spent = [text.epsilon(max(entry.epsilon.values())) if entry.epsilon else ""]
    norms = list(entry.update_norms.values())
    return [
        str(entry.round),
        f"{len(entry.cohort)} of {len(report.clients)}",
        *(text.metric(name, metrics[name]) if name in metrics else "" for name in names),
        *(spent if report.privacy.enabled else []),
        text.measured(median(norms)) if norms else "",
        text.size(entry.uplink_bytes),
        text.size(entry.downlink_bytes),
        text.duration(entry.seconds),
    ]


def _scores(report: Report) -> Table:
    evaluation = report.evaluation
    columns = (evaluation.initial_metrics, evaluation.metrics, report.reload.metrics)
    known = {name for metrics in columns for name in metrics}
    names = [n for n in _METRICS if n in known] + sorted(known.difference(_METRICS))
    return Table(
        columns=["Held-out score", "Before training", "Final", "Export, loaded again"],
        rows=[
            [
                text.printable(name.replace("_", " ").capitalize()),
                *(text.metric(name, m[name]) if name in m else "" for m in columns),
            ]
            for name in names
        ],
    )


def _add_section(lines: list[str], section: Mapping[str, Any], path: str) -> None:
    inner = {key: value for key, value in section.items() if isinstance(value, Mapping)}
    own = {key: value for key, value in section.items() if key not in inner}
    if path and (own or not inner):
        lines.extend(["", f"[{path}]"])
    for key, value in own.items():
        name = text.printable(str(key))
        lines.append(f"# {name} is not set" if value is None else f"{name} = {_literal(value)}")
    for key, value in inner.items():
        name = text.printable(str(key))
        _add_section(lines, value, f"{path}.{name}" if path else name)


def _literal(value: Any) -> str:
    return text.printable(json.dumps(value, ensure_ascii=False, default=str))
