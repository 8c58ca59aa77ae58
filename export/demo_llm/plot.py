"""Draw the training curves as an SVG picture.

python export/demo_llm/plot.py [--log work/log.jsonl] [--out curves.svg]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpus import WORK, read_jsonl

WIDTH, HEIGHT, MARGIN = 820, 360, 48
POINTS = 160
LINES = {
    "chosen": ("#1f77b4", "right first choice of the answer"),
    "found": ("#d62728", "answering sentence picked by the head on a middle layer"),
    "meaning": ("#2ca02c", "distance to the embedder's vectors (1 - cosine)"),
}
Point = tuple[float, float]


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--log", type=Path, default=WORK / "log.jsonl")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "curves.svg")
    arguments = parser.parse_args()
    arguments.out.write_text(picture(read_jsonl(arguments.log)), encoding="utf-8")
    print(arguments.out)


def picture(entries: Sequence[dict[str, Any]]) -> str:
    """Return the SVG of a training log: accuracies over millions of tokens, stages marked."""
    if not entries:
        raise SystemExit("the training log is empty; run train.py first")
    last = max(entry["tokens"] for entry in entries)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']  # fmt: skip
    parts += [_level(tenth / 5) for tenth in range(6)]
    parts += [_tick(last * quarter / 4, last) for quarter in range(5)]
    parts += _stages(entries, last)
    for row, (name, (colour, label)) in enumerate(LINES.items()):
        parts += _line(smoothed(entries, name), last, colour)
        parts.append(f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 80 + 18 * row}" fill="{colour}" '
                     f'text-anchor="end">{label}</text>')  # fmt: skip
    return "\n".join([*parts, "</svg>\n"])


def smoothed(entries: Sequence[dict[str, Any]], name: str) -> list[Point]:
    """Return about ``POINTS`` means of a figure over equal runs of steps."""
    run = max(1, len(entries) // POINTS)
    groups = [entries[start : start + run] for start in range(0, len(entries), run)]
    return [(group[-1]["tokens"], sum(e[name] for e in group) / len(group)) for group in groups]


def _place(tokens: float, value: float, last: float) -> Point:
    x = MARGIN + (WIDTH - 2 * MARGIN) * tokens / last
    return x, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value


def _line(points: Sequence[Point], last: float, colour: str) -> list[str]:
    places = " ".join(
        f"{x:.1f},{y:.1f}" for x, y in (_place(tokens, value, last) for tokens, value in points)
    )
    return [f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>']


def _level(value: float) -> str:
    _, y = _place(0, value, 1)
    return (
        f'<path d="M{MARGIN} {y:.1f}H{WIDTH - MARGIN}" stroke="#ddd"/>'
        f'<text x="{MARGIN - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>'
    )


def _tick(tokens: float, last: float) -> str:
    x, y = _place(tokens, 0, last)
    label = f"{tokens / 1e6:.1f} M tokens"
    return f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{label}</text>'


def _stages(entries: Sequence[dict[str, Any]], last: float) -> list[str]:
    parts, current = [], None
    for entry in entries:
        if entry["stage"] != current:
            current = entry["stage"]
            x, _ = _place(entry["tokens"], 0, last)
            parts.append(
                f'<path d="M{x:.1f} {MARGIN}V{HEIGHT - MARGIN}" stroke="#999" '
                f'stroke-dasharray="4"/><text x="{x + 4:.1f}" y="{MARGIN - 8}">{current}</text>'
            )
    return parts


if __name__ == "__main__":
    main()
