"""Word overlap: stems, BM25 and coverage."""

from __future__ import annotations

import pytest

from tritonrag.overlap import Overlap, stems

SENTENCES = ["Ask the desk.", "Laptops are replaced every 4 years.", "The desks are tall.", ""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Replaced laptops", ["replac", "laptop"]),
        ("Policy, policies: it is 3.5 E-7", ["polici", "polici", "3.5", "e-7"]),
        ("It expires, expired, expire", ["expir"] * 3),
        ("员工 年假", ["员工", "年假"]),
        ("— … !", []),
    ],
)
def test_stems(text: str, expected: list[str]) -> None:
    assert list(stems(text)) == expected


def test_the_sentence_with_the_rare_words_is_best() -> None:
    scores = Overlap(SENTENCES).scores("How often is the laptop replaced?", SENTENCES)

    assert max(scores) == scores[1]
    assert scores[3] == 0


def test_a_short_sentence_beats_a_long_one_with_the_same_words() -> None:
    short, long = "Desks.", "Desks and chairs and lamps and much else."
    found = Overlap([short, long]).scores("desk", [short, long])

    assert found[0] > found[1] > 0


def test_coverage_is_the_share_of_the_questions_words() -> None:
    overlap = Overlap(SENTENCES)

    assert overlap.covered("laptops years", SENTENCES[1]) == pytest.approx(1)
    assert 0 < overlap.covered("laptops dogs", SENTENCES[1]) < 0.6
    assert overlap.covered("dogs", SENTENCES[1]) == 0
    assert overlap.covered("", SENTENCES[1]) == 0


def test_no_sentences() -> None:
    assert Overlap([]).scores("any", []) == []
