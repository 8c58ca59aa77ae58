"""The client of a tritonrag server: sync and async, over gRPC and HTTP.

    from tritonrag.client import Client

    with Client() as client, client.ask("When do carried-over days expire?") as answer:
        for delta in answer:
            print(delta, end="", flush=True)
        print(answer.citations, answer.usage)

Errors are those of :mod:`tritonrag.errors`.
"""

from tritonrag.client.asynchronous import AsyncClient
from tritonrag.client.results import Answer, Citation, Health, Passage, SearchResult, Span, Usage
from tritonrag.client.streams import AnswerStream, AsyncAnswerStream
from tritonrag.client.synchronous import Client

__all__ = [
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "Citation",
    "Client",
    "Health",
    "Passage",
    "SearchResult",
    "Span",
    "Usage",
]
