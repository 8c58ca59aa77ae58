"""``tritonrag search`` and ``tritonrag ask``: questions to a running server."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Annotated, Any, Unpack

import typer
from rich.console import Console
from rich.text import Text

from tritonrag.cli.options import AsJson, Protocol, Url
from tritonrag.cli.terminal import json_text, printable
from tritonrag.client import Answer, AnswerStream, Citation, Client, Passage, Usage
from tritonrag.client.marshalling import AskOptions

SNIPPET_CHARS = 240

Question = Annotated[str, typer.Argument(help="What to look for, in plain words.")]
TopK = Annotated[int | None, typer.Option(help="Passages to return or to answer from.")]
RetrieveK = Annotated[int | None, typer.Option(help="Passages that a reranker chooses them from.")]
Collection = Annotated[str | None, typer.Option(help="Collection to search.")]
Filter = Annotated[
    str | None,
    typer.Option(help='Conditions on documents, JSON such as {"source": {"$prefix": "hr/"}}.'),
]
Group = Annotated[
    list[str] | None,
    typer.Option(help="Group to read as, for documents with access tags; may be repeated."),
]
Mode = Annotated[str | None, typer.Option(help="dense, sparse (BM25) or hybrid.")]
MinScore = Annotated[float | None, typer.Option(help="Least cosine similarity of a passage.")]
Diversity = Annotated[
    float | None, typer.Option(help="0 to 1: put back passages like those before them.")
]
Merge = Annotated[
    bool | None, typer.Option("--merge", help="Make one passage of neighbours in one section.")
]
Timeout = Annotated[float, typer.Option(help="Seconds that the request may take in all.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command()(search)
    app.command()(ask)


def search(
    question: Question,
    top_k: TopK = None,
    retrieve_k: RetrieveK = None,
    collection: Collection = None,
    filter: Filter = None,
    group: Group = None,
    mode: Mode = None,
    min_score: MinScore = None,
    diversity: Diversity = None,
    merge: Merge = None,
    url: Url = None,
    protocol: Protocol = "grpc",
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Print the passages nearest to a question, best first."""
    with Client(url, protocol, timeout) as client:
        found = client.search(
            question,
            top_k=top_k,
            retrieve_k=retrieve_k,
            collection=collection,
            filter=filter,
            groups=group or None,
            mode=mode,
            min_score=min_score,
            diversity=diversity,
            merge=merge,
        )
    if as_json:
        print(json_text({"passages": [_fields(passage) for passage in found]}))
    elif not found:
        print("nothing found; `tritonrag index stats` shows what is indexed")
    else:
        for rank, passage in enumerate(found, 1):
            _print_passage(rank, passage)


def ask(
    question: Question,
    top_k: TopK = None,
    retrieve_k: RetrieveK = None,
    collection: Collection = None,
    filter: Filter = None,
    group: Group = None,
    mode: Mode = None,
    min_score: MinScore = None,
    diversity: Diversity = None,
    merge: Merge = None,
    grounding: Annotated[
        str | None, typer.Option(help="quote: sentences of the sources only; free: own words.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling bound.")] = None,
    top_k_sampling: Annotated[
        int | None, typer.Option(help="Sample among the k likeliest tokens; 0 is all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")
    ] = None,
    url: Url = None,
    protocol: Protocol = "grpc",
    timeout: Timeout = 120.0,
    as_json: AsJson = False,
) -> None:
    """Stream the answer to a question, then its sources. Ctrl-C stops it on the server too."""
    options = AskOptions(
        top_k=top_k,
        retrieve_k=retrieve_k,
        collection=collection,
        filter=filter,
        groups=group or None,
        mode=mode,
        min_score=min_score,
        diversity=diversity,
        merge=merge,
        grounding=grounding,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k_sampling=top_k_sampling,
        seed=seed,
        stop=stop or None,
    )
    with Client(url, protocol, timeout) as client:
        if as_json:
            print(json_text(_answer_fields(client.ask(question, **options).read())))
        else:
            stream_answer(client, question, **options)


def stream_answer(
    client: Client, question: str, **options: Unpack[AskOptions]
) -> tuple[Citation, ...]:
    """Print an answer as it comes, then its sources, and return those that it cites."""
    with client.ask(question, **options) as stream:
        _print_text(stream)
        answer = stream.read()
    _print_sources(answer)
    _print_usage(answer.finish_reason, answer.usage)
    return answer.cited


def _print_text(stream: AnswerStream) -> None:
    try:
        for delta in stream:
            print(printable(delta, newlines=True), end="", flush=True)
    finally:
        if stream.text:
            print()


def _print_passage(rank: int, passage: Passage) -> None:
    _print_line(f"{rank:>3}  {passage.score:.3f}  {_place(passage)}", "bold")
    snippet = printable(textwrap.shorten(passage.text, SNIPPET_CHARS, placeholder=" …"))
    indent = " " * 5
    print(textwrap.fill(snippet, initial_indent=indent, subsequent_indent=indent, width=100))


def _print_sources(answer: Answer) -> None:
    for citation in answer.cited:
        _print_line(_source(citation))
    for citation in answer.citations:
        if citation not in answer.cited:
            left_out = f" (left out: {citation.dropped})" if citation.dropped else " (also read)"
            _print_line(_source(citation) + left_out, "dim")


def _print_usage(finish_reason: str, usage: Usage) -> None:
    prompt = _count(usage.prompt_tokens, "prompt tokens")
    cached = _count(usage.cached_tokens, "cached")
    generated = _count(usage.generated_tokens, "generated")
    line = (
        f"{finish_reason}; {prompt} ({cached}), {generated}; "
        f"first token {usage.time_to_first_token_ms:.0f} ms, total {usage.total_ms:.0f} ms"
    )
    _print_line(line, "dim")


def _count(number: int | None, what: str) -> str:
    return f"{what} not reported" if number is None else f"{number} {what}"


def _print_line(line: str, style: str = "") -> None:
    """Print one line, styled on a terminal, whatever its width and whatever a document put in."""
    Console(highlight=False, soft_wrap=True).print(Text(printable(line), style=style))


def _source(citation: Citation) -> str:
    mark = f"[{citation.mark}]" if citation.mark else " - "
    return f"  {mark} {_place(citation)}  {citation.score:.3f}"


def _place(passage: Passage) -> str:
    return " › ".join(part for part in (passage.source, passage.location) if part)


def _answer_fields(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "citations": [_fields(citation) for citation in answer.citations],
        "finish_reason": answer.finish_reason,
        "usage": asdict(answer.usage),
    }


def _fields(passage: Passage) -> dict[str, Any]:
    """Return a passage as the server sent it, without the fields that say nothing."""
    fields = asdict(passage)
    extra = fields.pop("extra")
    return {key: value for key, value in (fields | extra).items() if value is not None}
