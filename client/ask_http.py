"""Ask over plain HTTP with the standard library alone: nothing of tritonrag, nothing to install.

    python client/ask_http.py "When do carried-over days expire?"

Any language can do the same; in a shell:

    curl -N http://127.0.0.1:8000/v2/models/rag/generate_stream \\
      -d '{"question": "When do carried-over days expire?", "cancel_key": "a secret, made anew"}'

Closing the connection does not stop the generation (Triton does not tell a model inside an
ensemble); a second request with its key does:

    curl -N http://127.0.0.1:8000/v2/models/cancel/generate_stream \\
      -d '{"cancel_key": "a secret, made anew"}'
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen


def events(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as response:
        for line in response:
            if line.startswith(b"data:"):
                yield json.loads(line.removeprefix(b"data:"))


def answer(models: str, question: str) -> None:
    key = secrets.token_urlsafe()
    finished, citations = False, []
    try:
        body = {"question": question, "cancel_key": key}
        for event in events(f"{models}/rag/generate_stream", body):
            if "error" in event:
                sys.exit(event["error"])
            print(event["text"], end="", flush=True)
            if event["citations"]:
                citations = json.loads(event["citations"])
            finished = bool(event["finish_reason"])
    finally:
        if not finished:
            list(events(f"{models}/cancel/generate_stream", {"cancel_key": key}))
    print()
    for citation in citations:
        print(f"[{citation['mark']}] {citation['source']}: {citation['location']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    arguments = parser.parse_args()
    try:
        answer(f"{arguments.url}/v2/models", arguments.question)
    except HTTPError as error:
        sys.exit(f"HTTP {error.code}: {error.read().decode()}")


if __name__ == "__main__":
    main()
