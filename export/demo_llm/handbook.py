"""Make evaluation rows of the sample handbook: each question with the 4 passages nearest to it.

    python export/demo_llm/handbook.py && python export/demo_llm/evaluate.py \
        --rows export/demo_llm/work/handbook.jsonl --out export/demo_llm/work/handbook.json
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from corpus import WORK, read_jsonl, write_jsonl
from wordvectors import Embedder

HANDBOOK = Path(__file__).parents[2] / "samples" / "handbook"
QUESTIONS = Path(__file__).parent / "handbook_questions.jsonl"
PASSAGES = 4


def main() -> None:
    """Read the command line and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--handbook", type=Path, default=HANDBOOK)
    parser.add_argument("--questions", type=Path, default=QUESTIONS)
    parser.add_argument("--out", type=Path, default=WORK / "handbook.jsonl")
    arguments = parser.parse_args()
    files = sorted(arguments.handbook.glob("*.md"))
    passages = [passage for file in files for passage in sections(file.read_text("utf-8"))]
    questions = read_jsonl(arguments.questions)
    embedder = Embedder()
    vectors = embedder.encode([f"{heading}: {text}" for heading, text in passages])
    asked = embedder.encode([row["question"] for row in questions])
    nearest = (asked @ vectors.T).topk(PASSAGES).indices.tolist()
    rows = [
        {
            **row,
            "source": "handbook",
            "passages": [passages[number][1] for number in numbers],
            "headings": [passages[number][0] for number in numbers],
        }
        for row, numbers in zip(questions, nearest, strict=True)
    ]
    write_jsonl(arguments.out, rows)
    found = sum(row["answer"] in " ".join(row["passages"]) for row in rows if row["answer"])
    wanted = sum(row["answer"] is not None for row in rows)
    print(f"{len(rows)} rows; of {wanted} answers {found} are among the passages")


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield (heading, prose) of a Markdown file's sections, tables left out."""
    title, heading, lines = "", "", list[str]()
    for line in [*text.splitlines(), "## "]:
        if line.startswith("# "):
            title = line[2:].strip()
        elif line.startswith("## "):
            if lines:
                yield " > ".join(part for part in (title, heading) if part), " ".join(lines)
            heading, lines = line[3:].strip(), []
        elif line.strip() and not line.startswith("|"):
            lines.append(line.strip().removeprefix("- "))


if __name__ == "__main__":
    main()
