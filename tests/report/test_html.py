import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from fedpeft.report.html import render_html, toml_like
from fedpeft.report.schema import Report
from tests.report.factory import make_report

VOID = {"meta", "br", "hr", "img", "input", "link"}
SCRIPT = "<script>alert(1)</script>"

REPORTS = {
    "classification": make_report(),
    "causal_lm": make_report(task="causal_lm", num_clients=3),
    "no_privacy": make_report(private=False),
    "insecure": make_report(insecure=True),
    "one_round": make_report(num_rounds=1, num_clients=1),
    "no_round": make_report(num_rounds=1).model_copy(update={"rounds": []}),
    "many": make_report(
        num_clients=60,
        num_rounds=50,
        cohort_size=12,
        evaluate_every=5,
        labels=[f"intent_{i}" for i in range(150)],
    ),
    "hostile": make_report(
        client_ids=[SCRIPT, "_under", "$\\frac$", "a\x1b[31m\x00\u202e", '" onload="x', "京都"],
        labels=[SCRIPT, "$x$", "_", "&amp;", "]]>"],
        name=SCRIPT,
        notes=[SCRIPT],
        config={SCRIPT: {"x": SCRIPT}},
        versions={SCRIPT: SCRIPT},
    ),
}


class _Balanced(HTMLParser):
    """Fails on an end tag without its start; remembers every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.ids.extend(value or "" for key, value in attrs if key == "id")
        assert not any(key.startswith("on") for key, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render_html(report) for name, report in REPORTS.items()}


@pytest.fixture(params=REPORTS)
def page(request: pytest.FixtureRequest, pages: dict[str, str]) -> str:
    return pages[request.param]


def test_well_formed(page: str) -> None:
    parser = _Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert "script" not in parser.seen
    assert len(parser.ids) == len(set(parser.ids))


def test_figures_are_xml_with_their_own_ids(page: str) -> None:
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) >= 2
    for figure in figures:
        root = ElementTree.fromstring(figure)
        ids = {e.get("id") for e in root.iter() if e.get("id")}
        references = re.findall(r'(?:href="#|url\(#)([^")]+)', figure)
        assert ids == set(references)


def test_nothing_outside_is_referenced(page: str) -> None:
    page = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "http://" not in page
    assert "https://" not in page
    assert "src=" not in page
    assert "@import" not in page
    targets = re.findall(r'href="([^"]*)"', page)
    assert all(t.startswith(("#", "data:image/png;base64,")) for t in targets)
    assert all(t.startswith("#") for t in re.findall(r"url\(([^)]*)\)", page))


def test_no_tag_from_a_name(pages: dict[str, str]) -> None:
    assert "<script" not in pages["hostile"]
    assert "&lt;script&gt;" in pages["hostile"]
    assert "\x1b" not in pages["hostile"]
    assert "\u202e" not in pages["hostile"]
    assert "\x00" not in pages["hostile"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"private": False}, ["NO PRIVACY"]),
        ({"insecure": True}, ["INSECURE NOISE"]),
        ({"private": False, "insecure": True}, ["NO PRIVACY"]),
    ],
)
def test_banners_when_they_should(changes: dict[str, bool], expected: list[str]) -> None:
    page = render_html(make_report(num_rounds=2, **changes))  # type: ignore[arg-type]
    assert re.findall(r'role="alert"><strong>([A-Z ]+):', page) == expected
    for words in ("NO PRIVACY", "INSECURE NOISE"):
        assert (words in page) == (words in expected)


def test_banner_over_budget() -> None:
    report = make_report(num_rounds=2)
    clients = [client.model_copy(update={"budget_epsilon": 1.0}) for client in report.clients]
    page = render_html(report.model_copy(update={"clients": clients}))
    assert "BUDGET EXCEEDED" in page


def test_claims_follow_the_fields(pages: dict[str, str]) -> None:
    for words in (
        "adding or removing any one",
        "Poisson sample",
        "L2 norm of 0.5",
        "at the client",
    ):
        assert words in pages["classification"]
        assert words not in pages["no_privacy"]
    assert "Guaranteed, had the noise been secret" in pages["insecure"]
    assert "Guaranteed, had the noise been secret" not in pages["classification"]
    for name in ("classification", "no_privacy"):
        assert "assumed to be public" in pages[name]
        assert "would not leave the machine" in pages[name]
    assert "not covered by any ε" in pages["classification"]


def test_headline_numbers(pages: dict[str, str]) -> None:
    assert "6.00 / 6.00" in pages["classification"]
    assert "Held-out perplexity" in pages["causal_lm"]
    assert "9f2c41d07be8<" in pages["classification"]
    assert "majority class 31.0 %" in pages["classification"]
    assert "majority class" not in pages["causal_lm"]


def test_same_report_same_page() -> None:
    first, second = (render_html(make_report(num_rounds=3, num_clients=20)) for _ in range(2))
    assert first == second


def test_the_users_matplotlib_settings_take_no_part(pages: dict[str, str]) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 30, "axes.grid": False, "text.usetex": True}):
        assert render_html(REPORTS["classification"]) == pages["classification"]


def test_diverged_scores_still_make_a_page() -> None:
    report = make_report(num_rounds=3)
    scores = {"loss": float("nan"), "accuracy": float("inf")}
    evaluation = report.evaluation.model_copy(update={"metrics": scores})
    rounds = [r.model_copy(update={"metrics": scores}) for r in report.rounds]
    page = render_html(report.model_copy(update={"evaluation": evaluation, "rounds": rounds}))
    assert "not finite" in page


def test_toml_like() -> None:
    config = {"name": "x", "dp": {"enabled": True, "delta": 1e-05, "seed": None}, "empty": {}}
    assert toml_like(config) == (
        'name = "x"\n\n[dp]\nenabled = true\ndelta = 1e-05\n# seed is not set\n\n[empty]\n'
    )


def test_reports_are_what_they_say() -> None:
    assert len(REPORTS["many"].clients) == 60
    assert isinstance(REPORTS["many"], Report)
