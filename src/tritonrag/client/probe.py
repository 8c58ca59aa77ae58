"""A question through every model that no LLM has to answer: health checks."""

from __future__ import annotations

from tritonrag.client.streams import AnswerStream
from tritonrag.client.synchronous import Client
from tritonrag.contract import STALLED
from tritonrag.errors import NotFound, TritonragError

QUESTION = "health probe"


def probe(client: Client) -> None:
    """Send a question through every model, down to the thread of the engine.

    It is cancelled beforehand. Where the default collection does not exist, retrieval has answered
    by saying so, and only ``generate`` is left to ask.

    Raises:
        TritonragError: a model does not answer as it should.
    """
    try:
        _pass_through(client.ask(QUESTION, top_k=1))
    except NotFound:
        _pass_through(client.generate(QUESTION))


def engine_stalled(client: Client) -> bool:
    """Return whether the LLM's engine says that it makes no step; False where it says nothing."""
    try:
        _pass_through(client.generate(QUESTION))
    except TritonragError as error:
        return STALLED in str(error)
    return False


def _pass_through(stream: AnswerStream) -> None:
    stream.cancel()
    stream.read()
