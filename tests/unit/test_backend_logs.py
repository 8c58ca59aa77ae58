"""Log records as lines of the server's log."""

from __future__ import annotations

import logging
import re

from tritonrag.backend.logs import OneLine


def line(message: str, error: Exception | None = None) -> str:
    info = (type(error), error, None) if error else None
    record = logging.LogRecord("tritonrag.engines", 40, "", 0, "said: %s", (message,), info)
    return OneLine().format(record)


def test_a_record_is_written_as_triton_writes_its_own() -> None:
    form = r"E\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ tritonrag\.engines\] said: Zoë"
    assert re.fullmatch(form, line("Zoë"))


def test_nobody_writes_a_line_of_his_own() -> None:
    forged = "x\nE1128 12:00:00.000000 1 model.cc:1] forged\r\x1b[2J\u202e\ud800"
    written = line(forged, ValueError(forged))
    assert written.isprintable()
    assert r"x\nE1128" in written
    assert r"\nValueError: x\nE1128" in written
