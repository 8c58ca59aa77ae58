"""What a caller may ask of a search: how many passages, by what, how many for the reranker."""

from __future__ import annotations

from tritonrag.contract import MAX_TOP_K, MIN_TOP_K, MODES
from tritonrag.errors import InvalidRequest


def check_count(name: str, count: int) -> None:
    """Check a number of passages; ``name`` is the field that it came in.

    Raises:
        InvalidRequest: it is out of range.
    """
    if not MIN_TOP_K <= count <= MAX_TOP_K:
        raise InvalidRequest(f"{name}: {count} is not in {MIN_TOP_K} to {MAX_TOP_K}")


def check_mode(name: str, mode: str | None) -> None:
    """Check how to search; ``name`` is the field that it came in, None leaves it to the server.

    Raises:
        InvalidRequest: there is no such mode.
    """
    if mode is not None and mode not in MODES:
        raise InvalidRequest(f"{name}: {mode[:80]!r} is not one of {', '.join(MODES)}")


def passages_to_find(top_k: int, retrieve_k: int | None, least: int) -> int:
    """Return how many passages to find for a caller who wants ``top_k`` in the end.

    ``retrieve_k`` is what the caller said, ``least`` what a caller who said nothing gets at least
    (0 on a server without a reranker).

    Raises:
        InvalidRequest: one is out of range, or ``retrieve_k`` is under ``top_k``.
    """
    check_count("top_k", top_k)
    if retrieve_k is None:
        return max(top_k, least)
    check_count("retrieve_k", retrieve_k)
    if retrieve_k < top_k:
        raise InvalidRequest(f"retrieve_k: {retrieve_k} is under top_k, which is {top_k}")
    return retrieve_k
