"""Writes Markdown documents that an index cuts into as many passages as asked for: a load's corpus.

A handful of documents says little about a search over thousands. These are sections of three to
five sentences of the sample handbook, drawn by a seed and put under one of its headings, ten to a
document, so that the same number always gives the same files on any machine. No section is over
the budget of a chunk: one section is one passage. The text is realistic in its words and lengths
and unrealistic in that many passages share a sentence; what is measured is work, not relevance.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

HANDBOOK = Path(__file__).parents[2] / "samples" / "handbook"
SECTIONS = 10
SENTENCES = (3, 5)
MOST_WORDS = 60
"""Of a section, with room to spare in a chunk of 128 tokens."""
SEED = 10_000


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write them; made if missing")
    parser.add_argument("--passages", type=int, default=10_000, help="how many (default: 10000)")
    options = parser.parse_args()
    write(options.folder, options.passages)
    print(f"{options.folder}: {options.passages} sections")


def write(folder: Path, passages: int) -> None:
    """Write documents of ``passages`` sections into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(documents(passages)):
        (folder / f"part-{number:05}.md").write_text(text, encoding="utf-8")


def documents(passages: int) -> Iterator[str]:
    """Yield the documents, ``SECTIONS`` passages in each but the last."""
    chosen = random.Random(SEED)
    headings, sentences = _material()
    for first in range(0, passages, SECTIONS):
        count = min(SECTIONS, passages - first)
        sections = (_section(chosen, headings, sentences, first + at) for at in range(count))
        yield f"# Part {first // SECTIONS + 1}\n\n" + "\n".join(sections)


def _section(
    chosen: random.Random, headings: Sequence[str], sentences: Sequence[str], number: int
) -> str:
    drawn = chosen.sample(sentences, chosen.randint(*SENTENCES))
    while sum(len(each.split()) for each in drawn) > MOST_WORDS:
        drawn.pop()
    return f"## {chosen.choice(headings)} {number + 1}\n\n" + "\n".join(drawn) + "\n"


def _material() -> tuple[list[str], list[str]]:
    """Return the handbook's headings and its sentences, of which it has one in a line."""
    lines = [
        line.strip()
        for path in sorted(HANDBOOK.glob("*.md"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    headings = sorted({line.lstrip("# ") for line in lines if line.startswith("##")})
    sentences = sorted({line for line in lines if line.endswith(".") and line[0].isalpha()})
    return headings, sentences


if __name__ == "__main__":
    main()
