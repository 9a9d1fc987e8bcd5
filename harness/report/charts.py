"""Charts of a report: which are drawn, and their formats. They draw the figures of the tables, and rows of the runs."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.analysis.summary import Sweep
from harness.errors import HarnessError
from harness.files import install
from harness.report.marks import WIDTH, Chart
from harness.report.page import Drawing
from harness.report.run_charts import of_rows
from harness.report.table import Table
from harness.report.table_charts import CHARTS

try:
    import vl_convert
except ImportError:  # `_ready` names the extra `charts`
    vl_convert = None  # type: ignore[assignment]
ChartFormat = Literal["svg", "png", "pdf", "html"]


def of_tables(tables: Iterable[Table], width: int = WIDTH) -> list[Chart]:
    """A chart of each table that has one; of several tables with the same name the first is drawn."""
    _ready()
    first = {table.name: table for table in reversed(list(tables))}
    made = (draw(first[name], width) for name, draw in CHARTS.items() if name in first)
    return [chart for chart in made if chart is not None]


def of_report(tables: Sequence[Table], runs: Sweep, width: int = WIDTH) -> list[Chart]:
    """Every chart of a report: of the runs' rows and figures, and of its tables."""
    _ready()
    return [*of_rows(runs, tables, width), *of_tables(tables, width)]


def write(charts: Iterable[Chart], folder: Path, format_: ChartFormat = "svg") -> list[Path]:
    """Writes a file for each chart under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, Callable[[dict[str, Any]], str | bytes]] = {
        "svg": vl_convert.vegalite_to_svg,
        "png": lambda spec: vl_convert.vegalite_to_png(spec, scale=2),
        "pdf": vl_convert.vegalite_to_pdf,
        "html": lambda spec: vl_convert.vegalite_to_html(spec, bundle=True),
    }
    paths = []
    for chart in charts:
        paths.append(folder / f"{chart.name}.{format_}")
        made = kinds[format_](chart.spec)
        paths[-1].write_bytes(made.encode() if isinstance(made, str) else made)
    return paths


def svg(chart: Chart, title: bool = True) -> str:
    """The drawing as SVG; without its title for a page, which prints title and note itself."""
    spec = {key: value for key, value in chart.spec.items() if title or key != "title"}
    return str(vl_convert.vegalite_to_svg(spec))


def for_page(charts: Iterable[Chart]) -> list[Drawing]:
    """Drawings as a page takes them."""
    return [(each.name, each.title, each.note, svg(each, title=False)) for each in charts]


def _ready() -> None:
    if vl_convert is None:
        raise HarnessError("charts need vl-convert", install("charts"))
