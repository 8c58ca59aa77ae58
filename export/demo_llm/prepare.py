"""Turn question rows and document archives into what training and evaluation read.

    python export/demo_llm/prepare.py --rows QA.jsonl.gz --corpora FOLDER

A row is {"question", "passage", "answer", "source"}, the answer a span of the passage. Whole
documents are held back for evaluation; nothing of them gets into training.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from corpus import WORK, annotated, archive_texts, chunks, held_back, prose, read_jsonl, write_jsonl

from tritonrag.overlap import content_words

PASSAGE_CHARS = 560
"""Length of a training passage, about 128 tokens of the embedder: what the index holds."""
NEIGHBOUR_WORDS = 10_000
CORPUS_PASSAGES = 8_000
"""Passages of the archives that are used, by whole documents; the question rows have 7,000."""
Row = dict[str, Any]


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=Path, required=True, help="question rows, JSON Lines")
    parser.add_argument("--corpora", type=Path, required=True, help="folder of *.tar.gz of text")
    parser.add_argument("--out", type=Path, default=WORK)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    rows = [row for row in map(annotated, read_jsonl(arguments.rows)) if row]
    train, dev, test = split(rows)
    random = Random(arguments.seed)
    pool = [*row_passages(train), *some(corpus_passages(arguments.corpora), random)]
    write_jsonl(arguments.out / "rows.jsonl", train)
    write_jsonl(arguments.out / "pool.jsonl", pool)
    write_jsonl(arguments.out / "dev.jsonl", questions_with_passages(dev, random))
    write_jsonl(arguments.out / "test.jsonl", questions_with_passages(test, random))
    write_words(arguments.out, pool)
    print(f"{len(train)} training rows, {len(dev)} dev, {len(test)} test, {len(pool)} passages")


def split(rows: list[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Return training, development (5 %) and test (10 %) rows, by document."""
    test = held_back(rows, 0.10)
    rest = [row for number, row in enumerate(rows) if number not in test]
    dev = held_back(rest, 0.05)
    return (
        [row for number, row in enumerate(rest) if number not in dev],
        [rest[number] for number in sorted(dev)],
        [rows[number] for number in sorted(test)],
    )


def questions_with_passages(rows: list[Row], random: Random) -> Iterator[Row]:
    """Yield evaluation rows of 4 passages from one source; every fifth has no answer in them."""
    for number, row in enumerate(rows):
        own = " ".join(row["sentences"])
        texts = {" ".join(other["sentences"]) for other in rows if other["source"] == row["source"]}
        others = sorted(t for t in texts if row["answer"] not in t and t != own)
        answerable = number % 5 != 4
        passages = random.sample(others, 3 if answerable else 4) + [own] * answerable
        random.shuffle(passages)
        answer = row["answer"] if answerable else None
        yield {**_asked(row), "passages": passages, "answer": answer}


def _asked(row: Row) -> Row:
    return {"question": row["question"], "source": row["source"]}


def row_passages(rows: list[Row]) -> Iterator[Row]:
    """Yield the passages of question rows, each once."""
    seen: set[str] = set()
    for row in rows:
        text = " ".join(row["sentences"])
        if text not in seen:
            seen.add(text)
            yield {"group": row["source"], "heading": "", "sentences": row["sentences"]}


def corpus_passages(folder: Path) -> Iterator[Row]:
    """Yield passages of the archives' documents; ``group`` is the document."""
    for name, text in archive_texts(folder):
        for heading, found in chunks(prose(text), PASSAGE_CHARS):
            yield {"group": name, "heading": heading, "sentences": found}


def some(passages: Iterator[Row], random: Random) -> list[Row]:
    """Return the passages of documents drawn at random, until they are enough."""
    documents: dict[str, list[Row]] = {}
    for passage in passages:
        documents.setdefault(passage["group"], []).append(passage)
    found: list[Row] = []
    for name in random.sample(sorted(documents), len(documents)):
        if len(found) < CORPUS_PASSAGES:
            found += documents[name]
    return found


def write_words(out: Path, pool: list[Row]) -> None:
    """Write how rare each word is (IDF), and which words may stand for another."""
    from wordvectors import Embedder, nearest_words  # torch, which the rest does without

    counts: Counter[str] = Counter()
    for passage in pool:
        counts.update({word.lower() for s in passage["sentences"] for word in content_words(s)})
    rarity = {word: round(math.log(len(pool) / count), 3) for word, count in counts.items()}
    common = [word for word, _ in counts.most_common(NEIGHBOUR_WORDS) if word.isalpha()]
    near = nearest_words(common, Embedder().encode(common), most=4, least_cosine=0.68)
    (out / "rarity.json").write_text(json.dumps(rarity), encoding="utf-8")
    (out / "neighbours.json").write_text(
        json.dumps({word: words for word, words in near.items() if words}), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
