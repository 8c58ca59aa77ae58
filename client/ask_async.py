"""Ask several questions at once on one connection, with asyncio.

python client/ask_async.py "When do carried-over days expire?" "How long is parental leave?"
"""

from __future__ import annotations

import argparse
import asyncio

from tritonrag.client import AsyncClient
from tritonrag.errors import TritonragError


async def ask(client: AsyncClient, question: str) -> str:
    try:
        answer = await client.ask(question).read()
    except TritonragError as error:
        return f"> {question}\n{type(error).__name__}: {error}"
    sources = ", ".join(citation.source for citation in answer.cited)
    return f"> {question}\n{answer.text} ({sources}; {answer.usage.total_ms:.0f} ms)"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--url", default="127.0.0.1:8001")
    arguments = parser.parse_args()

    async with AsyncClient(arguments.url) as client:
        answers = [ask(client, question) for question in arguments.questions]
        for answer in asyncio.as_completed(answers):
            print(await answer)


if __name__ == "__main__":
    asyncio.run(main())
