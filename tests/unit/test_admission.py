"""The bound of an engine's queue, the sight of one that stands still, and who is next."""

from __future__ import annotations

import threading

import pytest

from tritonrag.engines import admission
from tritonrag.engines.admission import Admission, FairQueue
from tritonrag.errors import Unavailable


def test_one_more_than_the_limit_is_refused_until_one_leaves() -> None:
    gate = Admission(2)
    gate.enter()
    gate.enter()
    with pytest.raises(Unavailable, match=r"its queue is full \(2 generations\); try again later"):
        gate.enter()

    gate.leave()
    gate.enter()


def test_an_engine_that_does_not_move_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(admission.time, "monotonic", lambda: now)
    gate = Admission(3, stall_s=10)
    now += 1000  # idle, which is no stall
    gate.enter()
    now += 9.9
    gate.enter()
    gate.moved()
    now += 10.1
    with pytest.raises(Unavailable, match=r"made no step for 10 s \(stall_seconds\); try again"):
        gate.enter()

    gate.moved(busy_s=5)
    now += 14.9
    gate.enter()
    now += 0.2
    with pytest.raises(Unavailable, match="made no step for 15 s"):
        gate.enter()


def test_an_engine_that_never_says_when_it_moves_is_never_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(admission.time, "monotonic", lambda: now)
    gate = Admission(2)
    gate.enter()
    now += 1e6
    gate.enter()


def test_those_who_wait_are_taken_from_each_caller_in_turn() -> None:
    waiting: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "a3", "b1", "a4", "c1", "c2"):
        waiting.put(item[0], item)

    assert [waiting.take() for _ in range(8)] == ["a1", "b1", "c1", "a2", "c2", "a3", "a4", None]


def test_one_who_comes_later_waits_for_one_of_each_caller() -> None:
    waiting: FairQueue[str] = FairQueue()
    for number in range(100):
        waiting.put("a", f"a{number}")
    assert waiting.take() == "a0"
    waiting.put("b", "b0")

    assert [waiting.take(), waiting.take()] == ["a1", "b0"]


def test_those_who_left_are_taken_out() -> None:
    waiting: FairQueue[str] = FairQueue()
    for item in ("a1", "a2", "b1"):
        waiting.put(item[0], item)

    assert waiting.remove(lambda item: item in ("a1", "b1")) == ["a1", "b1"]
    assert waiting.remove(lambda item: False) == []
    assert [waiting.take(), waiting.take()] == ["a2", None]


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
