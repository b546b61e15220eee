import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fedpeft.errors import InputError
from fedpeft.report import plots
from tests.report.factory import make_report


def _texts(svg: str) -> list[str]:
    return [
        "".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if e.tag[-4:] == "text"
    ]


def test_text_stays_text_and_rounds_are_whole() -> None:
    svg = plots.metric_svg(make_report(num_rounds=3), "accuracy")
    assert svg is not None
    texts = _texts(svg)
    assert "Held-out accuracy" in texts
    assert "majority class 31.0 %" in texts
    assert {"Round", "0", "1", "2", "3"} <= set(texts)


def test_nothing_to_show_is_none() -> None:
    report = make_report(private=False, num_rounds=2)
    empty = report.model_copy(update={"rounds": []})
    assert plots.epsilon_svg(report) is None
    assert plots.metric_svg(report, "perplexity") is None
    assert plots.bytes_svg(empty) is None
    assert plots.update_norms_svg(empty) is None
    assert plots.diagnostics_svgs(empty) == []


def test_every_client_is_named_up_to_eight() -> None:
    few = plots.epsilon_svg(make_report(client_ids=["_a", "$b$", "c"], num_rounds=2))
    many = plots.epsilon_svg(make_report(num_clients=60, num_rounds=2))
    assert few is not None
    assert many is not None
    assert {"_a", "$b$", "c", "budget 6.00"} <= set(_texts(few))
    assert {"largest", "median", "each of 60", "budget 6.00"} <= set(_texts(many))


def test_epsilon_of_an_idle_client_stays() -> None:
    report = make_report(num_clients=2, num_rounds=3)
    spent = [{"client-00": 1.0}, {"client-01": 2.0}, {}]
    rounds = [
        r.model_copy(update={"epsilon": e}) for r, e in zip(report.rounds, spent, strict=True)
    ]
    report = report.model_copy(update={"rounds": rounds})
    assert plots._carried({1: 1.0}, report) == {0: 0.0, 1: 1.0, 2: 1.0, 3: 1.0}
    assert plots._carried({2: 2.0}, report) == {0: 0.0, 1: 0.0, 2: 2.0, 3: 2.0}


@pytest.mark.parametrize("num_labels", [1, 8, 9, 150])
@pytest.mark.parametrize("num_clients", [1, 120])
def test_partition_of_any_size(num_labels: int, num_clients: int, tmp_path: Path) -> None:
    histogram = {
        f"c{i}": {f"label {j}": 1 + (i * j) % 7 for j in range(num_labels)}
        for i in range(num_clients)
    }
    figure = plots.partition_figure(histogram, "Rows by client")
    plots.save_figure(figure, tmp_path / "p.svg")
    assert figure.get_figheight() * 72 < 1100
    assert (tmp_path / "p.svg").stat().st_size < 600_000


def test_labels_in_natural_order() -> None:
    figure = plots.partition_figure({"c": {f"l{i}": 1 for i in range(12)}}, "")
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert labels == [f"l{i}" for i in range(12)]


def test_partition_needs_a_client() -> None:
    with pytest.raises(ValueError, match="at least one client"):
        plots.partition_figure({}, "")


def test_partition_with_empty_clients() -> None:
    plots.partition_figure({"a": {}, "b": {}}, "")
    plots.partition_figure({"a": {str(i): 0 for i in range(20)}, "b": {}}, "")


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_saved_bytes_are_the_same(kind: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        figure = plots.partition_figure({"京": {"x": 3, "y": 4}, "b": {"y": 1}}, "Title")
        plots.save_figure(figure, tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_other_suffix_is_refused(tmp_path: Path) -> None:
    figure = plots.partition_figure({"a": {plots.ROWS: 3}}, "")
    with pytest.raises(InputError, match=r"\.svg, \.png or \.pdf"):
        plots.save_figure(figure, tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_no_pyplot_and_no_torch() -> None:
    code = (
        "import sys, fedpeft.report.write as w\n"
        "bad = {'matplotlib.pyplot', 'torch', 'tkinter'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
