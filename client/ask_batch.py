"""Answer a file of questions, one a line, and write one JSON object a line in the same order.

    python client/ask_batch.py questions.txt --at-once 4 > answers.jsonl

One client serves all threads. A question that fails is written with its error and stops nothing;
the exit status is 1 if any did.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tritonrag.client import Client
from tritonrag.errors import TritonragError


def answered(client: Client, question: str) -> dict[str, Any]:
    try:
        answer = client.ask(question, timeout=300).read()
    except TritonragError as error:
        return {"question": question, "error": f"{type(error).__name__}: {error}"}
    sources = [{"mark": c.mark, "source": c.source, "score": c.score} for c in answer.cited]
    usage = asdict(answer.usage)
    return {"question": question, "answer": answer.text, "sources": sources, "usage": usage}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--url", default="127.0.0.1:8001")
    arguments = parser.parse_args()
    questions = [line for line in arguments.questions.read_text().splitlines() if line.strip()]

    failed = False
    with Client(arguments.url) as client, ThreadPoolExecutor(arguments.at_once) as pool:
        for result in pool.map(lambda question: answered(client, question), questions):
            print(json.dumps(result, ensure_ascii=False), flush=True)
            failed |= "error" in result
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
