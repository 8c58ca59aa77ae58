"""``tritonrag eval``: how good the running server's answers are, measured."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tritonrag.artifacts import EmbedderManifest
from tritonrag.cli.index import needs_serve_extra
from tritonrag.cli.options import INDEX, REPOSITORY, IndexDir, Protocol, Repository, Url
from tritonrag.cli.working import EMBED_TIMEOUT_S
from tritonrag.client import Client
from tritonrag.contract import MODES
from tritonrag.errors import NotFound, SetupError
from tritonrag.limits import check_mode

if TYPE_CHECKING:
    from tritonrag.evaluation import CorpusDocument, Estimate

NOTICED_S = 10.0
"""How long the server may take to notice the collection."""

BATCH_TEXTS = 8
"""Texts per request: whole documents are as long as the embedder takes, and a request that waits in
the server's queue for 5 seconds is refused."""

CLIENTS = 8
"""Questions at a time."""

app = typer.Typer(help="Measure how good the answers are.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep ``retrieval`` a command of its own while there is no other."""


@app.command()
def retrieval(
    corpus: Annotated[Path, typer.Option(help="Documents: corpus.jsonl in the layout of BEIR.")],
    queries: Annotated[Path, typer.Option(help="Questions: queries.jsonl.")],
    qrels: Annotated[Path, typer.Option(help="Which documents are relevant: qrels.tsv.")],
    mode: Annotated[
        list[str] | None,
        typer.Option(help="dense, sparse or hybrid; may be repeated. Default: all three."),
    ] = None,
    url: Url = None,
    protocol: Protocol = "grpc",
    index_dir: IndexDir = INDEX,
    repository: Repository = REPOSITORY,
) -> None:
    """Measure retrieval through the running server: nDCG@10, recall and MRR.

    The corpus goes into a collection of its own, which is removed at the end: one passage a
    document, title and text as they are. The last line of standard output is one JSON object: the
    measures of the mode, or of each mode where there are several.
    """
    needs_serve_extra()
    if find_spec("pytrec_eval") is None:
        raise SetupError(
            "`tritonrag eval` needs the eval extra; install it with `pip install 'tritonrag[eval]'`"
        )
    from tritonrag import evaluation

    modes = list(dict.fromkeys(mode or MODES))
    for each in modes:
        check_mode("--mode", each)
    documents = evaluation.read_corpus(corpus)
    questions = evaluation.read_queries(queries)
    judged = evaluation.read_qrels(qrels)
    evaluation.check_together(documents, questions, judged)
    asked = {query: questions[query] for query in judged}
    found: dict[str, dict[str, Estimate]] = {}
    with (
        Client(url, protocol, EMBED_TIMEOUT_S) as client,
        _indexed(client, index_dir, repository, documents) as collection,
    ):
        for each in modes:
            rankings = _rankings(client, collection, each, asked)
            found[each] = evaluation.evaluate(rankings, judged)
    _print(found, len(documents), len(asked))


@contextmanager
def _indexed(
    client: Client, index_dir: Path, repository: Path, documents: Sequence[CorpusDocument]
) -> Iterator[str]:
    """Yield the name of a collection of ``documents``, which is there for the block only."""
    from tritonrag.index import store

    name = f"eval-{sha256(str(time.time_ns()).encode()).hexdigest()[:8]}"
    contents = _contents(client, EmbedderManifest.load(repository), documents)
    try:
        with store.writing(index_dir, name) as folder:
            store.publish(folder, contents)
        _await(client, name)
        yield name
    finally:
        shutil.rmtree(index_dir / name, ignore_errors=True)
        (index_dir / f".{name}.lock").unlink(missing_ok=True)


def _contents(
    client: Client, embedder: EmbedderManifest, documents: Sequence[CorpusDocument]
) -> Any:
    from tritonrag.cli.progress import indexing_progress
    from tritonrag.index import EmbedderId
    from tritonrag.index.embedding import embed_groups
    from tritonrag.index.manifest import DocumentRecord
    from tritonrag.index.store import Contents

    texts = {document.id: f"{document.title} {document.text}".strip() for document in documents}
    kept = [document for document in documents if texts[document.id]]
    with indexing_progress() as listener:
        listener.started(len(kept))

        def embedded(texts: Sequence[str], vectors: object) -> None:
            listener.embedded(len(texts))
            listener.finished(len(texts))

        groups = [(None, [texts[each.id] for each in kept])]
        ((_, vectors),) = embed_groups(
            client, groups, embedder.dimension, embedded, batch_texts=BATCH_TEXTS
        )
    return Contents(
        embedder=EmbedderId.of(embedder),
        dimension=embedder.dimension,
        recipe="whole documents",
        documents=[
            DocumentRecord(each.id, each.title, sha256(texts[each.id].encode()).hexdigest(),
                           "whole documents", 1)
            for each in kept
        ],
        passages=(_passage(each) for each in kept),
        vectors=[vectors],
    )  # fmt: skip


def _passage(document: CorpusDocument) -> bytes:
    values = {
        "id": document.id,
        "text": document.text,
        "source": document.id,
        "title": document.title,
        "location": document.title,
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def _await(client: Client, collection: str) -> None:
    end = time.monotonic() + NOTICED_S
    while True:
        try:
            client.search("ready?", top_k=1, collection=collection)
            return
        except NotFound as error:
            if time.monotonic() > end:
                raise SetupError(
                    f"the server has not noticed the collection within {NOTICED_S:.0f} s; is its "
                    "index in another folder than --index-dir?"
                ) from error
            time.sleep(0.1)


def _rankings(
    client: Client, collection: str, mode: str, queries: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return the documents of each query, best first, each at its best passage."""
    from tritonrag.evaluation import DEPTH

    def ranked(question: str) -> list[str]:
        found = client.search(question, collection=collection, mode=mode, top_k=DEPTH)
        return list(dict.fromkeys(passage.source for passage in found))

    with ThreadPoolExecutor(CLIENTS) as pool:
        return dict(zip(queries, pool.map(ranked, queries.values()), strict=True))


def _print(found: Mapping[str, Mapping[str, Estimate]], documents: int, queries: int) -> None:
    table = Table(title=f"{documents:,} documents, {queries:,} queries; 95 % confidence intervals")
    table.add_column("mode")
    for measure in next(iter(found.values())):
        table.add_column(measure, justify="right")
    for mode, measures in found.items():
        cells = (f"{each.mean:.3f} ({each.low:.3f} to {each.high:.3f})" for each in
                 measures.values())  # fmt: skip
        table.add_row(mode, *cells)
    Console(width=110).print(table)
    facts = {mode: _facts(measures) for mode, measures in found.items()}
    (only, *others) = facts.values()
    sizes = {"documents": documents, "queries": queries}
    print(json.dumps(sizes | (facts if others else {"mode": next(iter(facts)), **only})))


def _facts(measures: Mapping[str, Estimate]) -> dict[str, Any]:
    means = {name: round(each.mean, 4) for name, each in measures.items()}
    intervals = {name: [round(each.low, 4), round(each.high, 4)] for name, each in measures.items()}
    return means | {"confidence_95": intervals}
