"""What ``bench_full.py`` says of its cells: the line of figures, the table, and README's block.

A cell is called ``ROUND/WHAT/WHICH/CLIENTS``, such as ``2/search/http/64``. Figures that compare
two measurements take both from the same round. This module reads results and measures nothing.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

TITLES = {
    "grpc": "`{model}`, gRPC",
    "http": "`{model}`, HTTP",
    "aiperf": "`{model}`, HTTP by AIPerf",
    "fastapi": "FastAPI + sentence-transformers + FAISS",
    "txtai": "txtai API",
    "hayhooks": "Haystack + Hayhooks",
    "transformers": "FastAPI + transformers",
}
SEARCHERS = ("fastapi", "txtai", "hayhooks")
LEAST_AGREEMENT = 0.8
"""Share of our passages that a peer has to find; one with an approximate index finds a few less."""
Figure = Callable[[dict[str, Any]], float | None]


@dataclass(frozen=True)
class Result:
    """The cells of a run, read by round."""

    cells: dict[str, Any]
    rounds: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Find the rounds."""
        found = {match[0] for name in self.cells if (match := re.match(r"\d+(?=/)", name))}
        object.__setattr__(self, "rounds", sorted(found, key=int))

    def each(self, *figures: tuple[str, Figure]) -> Iterator[tuple[float, ...]]:
        """Yield, of every round that has them all, the figures of these cells."""
        for number in self.rounds:
            found = [self._figure(f"{number}/{name}", figure) for name, figure in figures]
            if all(value is not None for value in found):
                yield tuple(value for value in found if value is not None)

    def values(self, name: str, figure: Figure) -> list[float]:
        """Return a figure of a cell in every round."""
        return [value for (value,) in self.each((name, figure))]

    def clients(self, prefix: str) -> list[int]:
        """Return at how many clients something was measured."""
        pattern = re.compile(rf"\d+/{re.escape(prefix)}/(\d+)")
        return sorted({int(match[1]) for name in self.cells if (match := pattern.fullmatch(name))})

    def comparable(self, peer: str) -> bool:
        """Return whether a peer finds the same passages, so that its speed means something."""
        return (self.cells.get(f"agreement/{peer}") or 0) >= LEAST_AGREEMENT

    def _figure(self, name: str, figure: Figure) -> float | None:
        cell = self.cells.get(name)
        return None if cell is None else figure(cell)


def qps(cell: dict[str, Any]) -> float | None:
    """Return requests a second, of gRPC or HTTP."""
    return _of(cell, "qps")


def tokens(cell: dict[str, Any]) -> float | None:
    """Return tokens a second."""
    return _of(cell, "tokens_per_s")


def p50(cell: dict[str, Any]) -> float | None:
    """Return the median latency in ms."""
    return _percentile(cell, "latency", "p50")


def p95(cell: dict[str, Any]) -> float | None:
    """Return the 95th percentile of the latency in ms."""
    return _percentile(cell, "latency", "p95")


def first_token(cell: dict[str, Any]) -> float | None:
    """Return the median time to the first token in ms."""
    return _percentile(cell, "first_token", "p50")


def value(cell: Any) -> float | None:
    """Return a cell that is one number."""
    return None if cell is None else float(cell)


def median(values: Sequence[float], digits: int = 1) -> float | None:
    """Return the median, None of nothing."""
    return round(statistics.median(values), digits) if values else None


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the median and in brackets the lowest and the highest value, "" of nothing."""
    if not values:
        return ""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def figures(result: Result) -> dict[str, list[float]]:
    """Return every figure of the last line, by its key, as the values of the rounds."""
    found = {
        "search_c64_over_limit": [
            got / statistics.fmean((before, after))
            for got, before, after in result.each(
                ("search/grpc/64", qps), ("limit/before", value), ("limit/after", value)
            )
        ],
        "search_c1_p50_over_ms": [
            got - alone
            for got, alone in result.each(("search/grpc/1", p50), ("in_process/latency", value))
        ],
        "search_c200_p95_ms": result.values("search/grpc/200", p95),
        "rag_c8_tokens_over_engine": _ratios(result, ("rag/grpc/8", tokens), ("engine/8", value)),
        "rag_c1_ttft_over_ms": [
            got - search - engine
            for got, search, engine in result.each(
                ("rag/grpc/1", first_token), ("search/grpc/1", p50), ("engine/first_token", value)
            )
        ],
        "bulk_embed_over_bare": _ratios(result, ("bulk/server", value), ("bulk/bare", value)),
        "server_rss_mb": result.values("memory/server", value),
        "limit_b64_qps": result.values("limit/before", value),
        "limit_b1_p50_ms": result.values("in_process/latency", value),
    }
    for name in filter(result.comparable, SEARCHERS):
        peer = (f"search/{name}/64", qps)
        found[f"over_{name}"] = _ratios(result, ("search/http/64", qps), peer)
        found[f"over_{name}_grpc"] = _ratios(result, ("search/grpc/64", qps), peer)
    answers = ("rag/http/8", qps)
    found["rag_c8_answers_over_transformers"] = _ratios(
        result, answers, ("rag/transformers/8", qps)
    )
    found["rag_c8_answers_over_genai"] = _ratios(result, answers, ("genai/8", value))
    return found


def summary(result: Result) -> dict[str, Any]:
    """Return the line that other programs read: medians over the rounds, None where all failed."""
    found: dict[str, Any] = {key: median(values, 3) for key, values in figures(result).items()}
    for name in SEARCHERS:
        found.setdefault(f"over_{name}", None)
        found[f"agreement_{name}"] = result.cells.get(f"agreement/{name}")
    found["rounds"] = len(result.rounds)
    found["errors"] = sum(_errors(cell) for cell in result.cells.values())
    return found


def spreads(result: Result) -> dict[str, list[float]]:
    """Return the lowest and the highest round of each figure."""
    return {
        key: [round(min(values), 3), round(max(values), 3)]
        for key, values in figures(result).items()
        if values
    }


def table(result: Result) -> str:
    """Return all loads in Markdown, and below them the figures that compare."""
    head = ("load", "requests/s", "p50 ms", "p95 ms", "first token p50 ms", "tokens/s")
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *_loads(result)]
    comparing = [("figure", "median (lowest–highest)"), ("---", "---:")]
    comparing += [(f"`{key}`", spread(values, 3)) for key, values in figures(result).items()]
    comparing += [
        (f"`agreement_{name}`, of its passages with ours", f"{found:.3f}")
        for name in SEARCHERS
        if (found := result.cells.get(f"agreement/{name}")) is not None
    ]
    blocks = ("\n".join("| " + " | ".join(row) + " |" for row in rows) for rows in
              (lines, comparing))  # fmt: skip
    return "\n\n".join(blocks)


README_ROWS = (
    ("search_c64_over_limit", "`search`, 64 clients, over the in-process limit at batch 64", ""),
    ("search_c1_p50_over_ms", "`search`, 1 client, p50 above the same work in process", " ms"),
    ("search_c200_p95_ms", "`search`, 200 clients, p95", " ms"),
    ("over_fastapi", "`search`, 64 clients, beside FastAPI + sentence-transformers + FAISS", "×"),
    ("over_txtai", "`search`, 64 clients, beside txtai's API", "×"),
    ("over_hayhooks", "`search`, 64 clients, beside Haystack + Hayhooks", "×"),
    ("rag_c8_tokens_over_engine", "`rag`, 8 clients, tokens/s over the bare engine", ""),
    ("rag_c1_ttft_over_ms", "`rag`, 1 client, first token above search and engine", " ms"),
    ("bulk_embed_over_bare", "indexing, passages/s over bare embedding", ""),
    ("server_rss_mb", "memory of the whole server", " MB"),
)


def readme_table(record: dict[str, Any]) -> str:
    """Return the table that README shows of a result of ``bench.py`` or ``bench_full.py``.

    Figures that the result does not have are left out.
    """
    found, around = record["summary"], record.get("spreads", {})
    rows = ["| | |", "|---|---|"]
    for key, label, unit in README_ROWS:
        if found.get(key) is not None:
            rows.append(f"| {label} | {_readable(found[key], unit, around.get(key))} |")
    return "\n".join(rows)


def _readable(middle: float, unit: str, around: Sequence[float] | None) -> str:
    digits = 0 if abs(middle) >= 100 else 1 if abs(middle) >= 10 else 2
    shown = f"{middle:.{digits}f}{unit}"
    if around is None:
        return shown
    low, high = around
    return f"{shown} ({low:.{digits}f} to {high:.{digits}f})"


def _loads(result: Result) -> Iterator[tuple[str, ...]]:
    for model in ("search", "rag"):
        for which in TITLES:
            for clients in result.clients(f"{model}/{which}"):
                yield _row(result, model, which, clients)


def _row(result: Result, model: str, which: str, clients: int) -> tuple[str, ...]:
    name = f"{model}/{which}/{clients}"
    shown = (qps, p50, p95, first_token, tokens)
    return (
        f"{TITLES[which].format(model=model)}, {clients} client{'s' * (clients > 1)}",
        *(spread(result.values(name, figure)) for figure in shown),
    )


def _ratios(result: Result, ours: tuple[str, Figure], other: tuple[str, Figure]) -> list[float]:
    return [above / below for above, below in result.each(ours, other) if below]


def _of(cell: dict[str, Any], figure: str) -> float | None:
    measured = cell["measured"] if "models" in cell else cell
    return measured.get(figure) if measured else None


def _percentile(cell: dict[str, Any], time: str, percentile: str) -> float | None:
    measured = cell["measured"] if "models" in cell else cell
    found = measured.get(time) if measured else None
    return found[percentile] if found else None


def _errors(cell: Any) -> int:
    return int(cell.get("errors", 0)) if isinstance(cell, dict) else 0
