"""Options and defaults that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritonrag.settings import INDEX_DIR_VARIABLE, REPOSITORY_VARIABLE, URL_VARIABLE

INDEX, REPOSITORY = Path("index"), Path("model_repository")

IndexDir = Annotated[Path, typer.Option(envvar=INDEX_DIR_VARIABLE, help="Folder of the index.")]
Url = Annotated[
    str | None,
    typer.Option(
        envvar=URL_VARIABLE,
        show_default="127.0.0.1:8001, with http 127.0.0.1:8000",
        help="Server, host:port.",
    ),
]
Protocol = Annotated[str, typer.Option(help="grpc or http.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Collection = Annotated[str, typer.Option(help="Collection to work on.")]
Repository = Annotated[
    Path,
    typer.Option(envvar=REPOSITORY_VARIABLE, help="Model repository whose embedder is used."),
]
ChunkTokens = Annotated[int, typer.Option(help="Most tokens of a chunk, its headings included.")]
ChunkOverlap = Annotated[
    int, typer.Option(help="Most tokens that a chunk repeats of the one before.")
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, show_default="half of the cores", help="Processes that parse files."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        show_default="this machine",
        help="Ray cluster that parses and embeds: local, auto or host:port of its head. "
        "--url may then name several servers, between commas.",
    ),
]
FileSeconds = Annotated[
    int, typer.Option(min=1, help="Most seconds that parsing one file may take.")
]
FileMemory = Annotated[
    int, typer.Option(min=64, help="Most MiB of memory that parsing one file may take.")
]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Index what links lead to, outside its folder too.")
]
AllowOpening = Annotated[
    bool,
    typer.Option(
        "--allow-opening", help="Also where documents then can be read by more callers than now."
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try unchanged files again that failed.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="End where another writer is at work.")]
