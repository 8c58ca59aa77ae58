"""Reads the cause of a failed start out of the server's log."""

from __future__ import annotations

import re

_FAILED_MODEL = re.compile(
    r"""failed to load '(?P<model>[^']+)' version \d+: (?P<cause>.*?)(?=\\n\\nAt:|"?$)""",
    re.MULTILINE,
)
"""The log escapes the line breaks of a message, and a Python traceback follows "At:"."""
_ERROR = re.compile(r"^E\d{4} \S+ \d+ \S+\] (?P<message>.+)$", re.MULTILINE)
_NOISE = re.compile(
    r"^(Internal|Invalid argument|Not found|Unavailable|Unsupported|Unknown): |^\w*Error: "
)


def cause(log: str) -> str:
    """Return why the server did not start, a line for each failed model; empty if not found.

    ``log`` is what the server wrote. A model that waits for a failed one is not listed.
    """
    failed = {match["model"]: _plain(match["cause"]) for match in _FAILED_MODEL.finditer(log)}
    if failed:
        return "\n".join(f"model {model}: {why}" for model, why in failed.items())
    errors = [
        _plain(match["message"])
        for match in _ERROR.finditer(log)
        if "CUDA" not in match["message"] and "CudaDriver" not in match["message"]
    ]
    return "\n".join(dict.fromkeys(errors[:3]))


def _plain(text: str) -> str:
    plain = text.strip().strip('"').replace("\\n", " ").strip()
    while stripped := _NOISE.sub("", plain):
        if stripped == plain:
            break
        plain = stripped
    return " ".join(plain.split())
