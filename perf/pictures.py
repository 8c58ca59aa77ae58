"""Pictures of a result of ``bench_full.py`` or ``index_scale.py``, as SVG beside its JSON.

Both draw them themselves; ``python perf/pictures.py RESULT.json`` draws those of an older result.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from report import TITLES, Result, p50, p95, qps

matplotlib.rcParams |= {"svg.hashsalt": "tritonrag", "svg.fonttype": "none", "font.size": 9}
REST = "lightgrey"
STAGES = {"search": ("tokenize", "embed", "retrieve"),
          "rag": ("tokenize", "embed", "retrieve", "prompt", "generate")}  # fmt: skip


def draw(result: Result, path: Path) -> list[Path]:
    """Write the pictures of a result next to ``path``, which has no ending; return their paths."""
    drawn = {
        "throughput": _throughput(result),
        "batches": _batches(result, 64),
        "stages": _stages(result),
    }
    return _save(drawn, path)


def draw_sizes(sizes: Sequence[dict[str, Any]], path: Path) -> list[Path]:
    """Write the picture of what searching costs, by passages, next to ``path``."""
    return _save({"cost": _cost(sizes)}, path)


def _save(drawn: Mapping[str, Figure], path: Path) -> list[Path]:
    paths = []
    for name, figure in drawn.items():
        paths.append(path.with_name(f"{path.name}-{name}.svg"))
        figure.savefig(paths[-1], metadata={"Date": None})
    return paths


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _throughput(result: Result) -> Figure:
    figure, axes = _axes("search: throughput against p95, by clients", "requests/s", "p95, ms")
    for which, title in TITLES.items():
        points = []
        for clients in result.clients(f"search/{which}"):
            name = f"search/{which}/{clients}"
            pairs = list(result.each((name, qps), (name, p95)))
            if pairs:
                x, y = (statistics.median(values) for values in zip(*pairs, strict=True))
                points.append((x, y))
                axes.annotate(str(clients), (x, y), (3, 3), textcoords="offset points")
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=_plain(title))
    axes.set(xscale="log", yscale="log")
    axes.legend(frameon=False)
    return figure


def _batches(result: Result, clients: int) -> Figure:
    title = f"search, {clients} clients over gRPC: batches of embed"
    figure, axes = _axes(title, "requests in a batch", "share of the requests")
    counts: dict[int, int] = {}
    for each in _models(result, f"search/grpc/{clients}"):
        for size, executions in each["embed"]["batches"].items():
            counts[int(size)] = counts.get(int(size), 0) + int(size) * executions
    total = sum(counts.values()) or 1
    axes.bar(list(counts), [count / total for count in counts.values()])
    return figure


def _cost(sizes: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8, 4), layout="constrained")
    time, disk = figure.subplots(1, 2)
    for axes, title, y in ((time, "one client, p50", "ms"), (disk, "index on disk", "MB")):
        axes.set(title=title, xlabel="passages", ylabel=y, xscale="log", yscale="log")
        axes.spines[["top", "right"]].set_visible(False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,g}")
            axis.set_minor_formatter("")
    passages = [each["passages"] for each in sizes]
    found: dict[str, list[tuple[int, float]]] = {}
    for count, each in zip(passages, sizes, strict=True):
        for row in each["searches"]:
            if row["share"] == 1:
                name = f"{row['mode']}{', exact' * (row['index'] == 'exact')}"
                found.setdefault(name, []).append((count, row["clients_1"]["p50_ms"]))
    for name, points in found.items():
        time.plot(*zip(*points, strict=True), "o-", label=name)
    disk.plot(passages, [sum(each["megabytes"].values()) for each in sizes], "o-", color="C7")
    time.legend(frameon=False)
    return figure


def _stages(result: Result) -> Figure:
    title = "where the time of a request goes, mean"
    figure, axes = _axes(title, "ms in each model: waiting (light), computing (dark)", "")
    labels = []
    for model, stages in STAGES.items():
        for clients in result.clients(f"{model}/grpc"):
            name = f"{model}/grpc/{clients}"
            models, latencies = _models(result, name), result.values(name, p50)
            if models and latencies:
                _bar(axes, len(labels), models, stages, statistics.median(latencies))
                labels.append(f"{model}, {clients}")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    handles = [Patch(color=f"C{at}") for at in range(len(STAGES["rag"]))]
    axes.legend([*handles, Patch(color=REST)], [*STAGES["rag"], "rest"], frameon=False)
    return figure


def _bar(
    axes: Axes, at: int, models: list[dict[str, Any]], stages: tuple[str, ...], latency: float
) -> None:
    """Draw a bar of the stages and, up to the median latency, what no model accounts for.

    Triton counts nothing of a stream between `generate` taking a request and its last response, so
    that the engine's time is in the rest.
    """
    left = 0.0
    for number, stage in enumerate(stages):
        requests = sum(each[stage]["requests"] for each in models) or 1
        for part, alpha in (("queue_ms", 0.4), ("compute_ms", 1.0)):
            width = sum(each[stage][part] for each in models) / requests
            axes.barh(at, width, left=left, color=f"C{number}", alpha=alpha)
            left += width
    axes.barh(at, max(0.0, latency - left), left=left, color=REST)


def _models(result: Result, name: str) -> list[dict[str, Any]]:
    """Return what Triton counted of each model, of every round of a cell."""
    cells = (result.cells.get(f"{number}/{name}") for number in result.rounds)
    return [cell["models"] for cell in cells if cell and cell.get("models")]


def _plain(title: str) -> str:
    return title.format(model="search").replace("`", "")


def main() -> None:
    """Draw the pictures of the result that is named."""
    path = Path(sys.argv[1])
    record = json.loads(path.read_text(encoding="utf-8"))
    target = path.with_suffix("")
    sizes = record.get("sizes")
    drawn = draw_sizes(sizes, target) if sizes else draw(Result(record["cells"]), target)
    print(*drawn, sep="\n")


if __name__ == "__main__":
    main()
