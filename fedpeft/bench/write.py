"""bench.json, strict JSON and written last, and bench.svg beside it."""

import json
from pathlib import Path

from fedpeft.bench.schema import BenchReport
from fedpeft.files import write_text

JSON_NAME, PLOT_NAME = "bench.json", "bench.svg"


def to_json(report: BenchReport) -> str:
    """Returns the report as strict JSON, two spaces deep, ending in a line break."""
    content = report.model_dump(mode="json")
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_bench(report: BenchReport, directory: Path) -> None:
    """Writes both files into a folder, which is made if it is missing."""
    from fedpeft.bench.plots import ratios_figure
    from fedpeft.report.plots import save_figure

    content, figure = to_json(report), ratios_figure(report)
    directory.mkdir(parents=True, exist_ok=True)
    save_figure(figure, directory / PLOT_NAME)
    write_text(directory / JSON_NAME, content)
