from __future__ import annotations

import numpy as np
import pytest

from tritonrag import fusion


def test_what_is_first_everywhere_scores_one() -> None:
    items, scores = fusion.reciprocal_rank_fusion([np.array([7, 3]), np.array([7, 9])])
    assert items.tolist() == [7, 3, 9]
    assert scores == pytest.approx([1, 61 / 62 / 2, 61 / 62 / 2])


def test_a_place_in_both_rankings_beats_the_first_place_in_one() -> None:
    items, _ = fusion.reciprocal_rank_fusion([np.array([1, 2, 3]), np.array([4, 5, 3])])
    assert items[0] == 3


def test_an_empty_ranking_changes_no_order() -> None:
    items, _ = fusion.reciprocal_rank_fusion([np.array([5, 2]), np.empty(0, np.int64)])
    assert items.tolist() == [5, 2]


RELEVANCE = np.array([0.9, 0.88, 0.5], np.float32)
SIMILARITY = np.array([[1, 0.99, 0], [0.99, 1, 0], [0, 0, 1]], np.float32)


@pytest.mark.parametrize(("diversity", "order"), [(0, [0, 1]), (0.5, [0, 2]), (1, [0, 2])])
def test_diversity_puts_back_what_is_like_those_before(diversity: float, order: list[int]) -> None:
    assert fusion.maximal_marginal_relevance(RELEVANCE, SIMILARITY, 2, diversity) == order


def test_no_more_are_chosen_than_there_are() -> None:
    chosen = fusion.maximal_marginal_relevance(RELEVANCE, SIMILARITY, 9, 0.3)
    assert sorted(chosen) == [0, 1, 2]


LONG = "Each employee receives thirty days of leave a year and may carry five of them over " * 3


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("The Office, opens early.", "the office opens early", True),
        ("Grünes Licht", "grünes  LICHT!", True),
        (LONG, LONG + "again", True),
        ("It opens at 8 in the morning", "It opens at 9 in the morning", False),
        (LONG, LONG.replace("may carry", "may not carry", 1), False),
        ("one two three", "one two four", False),
        ("第一章", "第二章", False),
        ("!!", "!!", True),
        ("!!", "??", False),
    ],
)
def test_near_duplicates(first: str, second: str, same: bool) -> None:
    assert fusion.near_duplicates(first, second) is same


@pytest.mark.parametrize(
    ("first", "second", "whole"),
    [
        ("One. Two.", "Two. Three.", "One. Two. Three."),
        ("One.", "Two!", "One.\nTwo!"),
        ("Two.", "Two. Three.", "Two. Three."),
    ],
)
def test_joined_texts_repeat_nothing(first: str, second: str, whole: str) -> None:
    assert fusion.joined(first, second) == whole
