"""What the engines log, in the server's log: a line each, in the form of Triton's own lines."""

from __future__ import annotations

import logging
import time


def log_to_server() -> None:
    """Send the package's log records to stderr, which is the server's log; from warnings on."""
    logger = logging.getLogger("tritonrag")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(OneLine())
        logger.addHandler(handler)


class OneLine(logging.Formatter):
    r"""Writes a record, its traceback included, on one line, as Triton does.

    Messages may hold what users or other services wrote: whatever is not printable becomes an
    escape such as ``\n``, so that nobody writes a line of his own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, such as ``E1128 11:25:15.000123 42 tritonrag.engines.genai] text``."""
        when = time.strftime("%m%d %H:%M:%S", time.localtime(record.created))
        micros = int(record.created % 1 * 1e6)
        text = "".join(map(_printable, super().format(record)))
        return f"{record.levelname[0]}{when}.{micros:06} {record.process} {record.name}] {text}"


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
