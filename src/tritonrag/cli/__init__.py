"""The ``tritonrag`` command. Each module of this package adds its own commands to ``app``."""

from __future__ import annotations

import sys

import typer

from tritonrag.cli import collections, evaluate, index, models, query, serving
from tritonrag.cli.demo import demo
from tritonrag.cli.sync import sync
from tritonrag.cli.terminal import printable
from tritonrag.errors import RequestError, TritonragError

app = typer.Typer(
    name="tritonrag",
    help="Retrieval-augmented generation as one graph inside NVIDIA Triton Inference Server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
serving.register(app)
query.register(app)
app.command()(demo)
index.app.command()(sync)
collections.register(index.app)
app.add_typer(index.app, name="index")
app.add_typer(evaluate.app, name="eval")
app.add_typer(models.app, name="models")


def main() -> None:
    """Run the command line; a known error ends it with one line and status 2 or 1.

    Status 2 means that the request was at fault, 1 that the service was, 130 that Ctrl-C was
    pressed.
    """
    try:
        app()
    except TritonragError as error:
        print(f"tritonrag: {printable(str(error), newlines=True)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, RequestError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
