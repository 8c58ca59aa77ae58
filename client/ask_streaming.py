"""Stream one answer with its sources.

python client/ask_streaming.py "When do carried-over days expire?"
"""

from __future__ import annotations

import argparse

from tritonrag.client import Client


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--protocol", choices=["grpc", "http"], default="grpc")
    arguments = parser.parse_args()

    # Leaving the inner block early, by Ctrl-C too, stops the generation on the server.
    with Client(arguments.url, arguments.protocol) as client:
        with client.ask(arguments.question) as answer:
            for delta in answer:
                print(delta, end="", flush=True)
        print()
        for citation in answer.citations:
            print(
                f"[{citation.mark}] {citation.source}: {citation.location} ({citation.score:.2f})"
            )


if __name__ == "__main__":
    main()
