"""The bound of an engine's queue, and cancels that overtake their question."""

from __future__ import annotations

import threading

import pytest

from tritonrag.engines import admission
from tritonrag.engines.admission import Admission
from tritonrag.errors import Unavailable


def test_one_more_than_the_limit_is_refused_until_one_leaves() -> None:
    gate = Admission(2)
    gate.enter()
    gate.enter()
    with pytest.raises(Unavailable, match=r"its queue is full \(2 generations\); try again later"):
        gate.enter()

    gate.leave()
    gate.enter()


def test_a_cancel_counts_once_and_for_its_own_id() -> None:
    gate = Admission(1)
    gate.cancel_early("a")

    assert not gate.was_cancelled("b")
    assert gate.was_cancelled("a")
    assert not gate.was_cancelled("a")


def test_a_cancel_is_forgotten_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(admission.time, "monotonic", lambda: now)
    gate = Admission(1)
    gate.cancel_early("a")
    gate.cancel_early("b")

    now += admission.EARLY_CANCEL_S + 1
    gate.cancel_early("c")

    assert not gate.was_cancelled("a")
    assert gate.was_cancelled("c")
    assert not gate._cancelled, "memory does not grow with cancels"


def test_threads_never_exceed_the_limit() -> None:
    gate, refused = Admission(5), []

    def visit() -> None:
        for _ in range(200):
            try:
                gate.enter()
            except Unavailable:
                refused.append(1)
            else:
                gate.leave()

    threads = [threading.Thread(target=visit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for _ in range(5):
        gate.enter()
    with pytest.raises(Unavailable):
        gate.enter()
