from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tritonrag.index import bm25
from tritonrag.index.analysis import passage_terms, question_terms
from tritonrag.index.vectors import Allowed


@pytest.mark.parametrize(
    ("passage", "question"),
    [
        ("The employees were paid weekly.", "paying an employee"),
        ("Die Mitarbeiterinnen erhalten dreißig Urlaubstage.", "Urlaubstag"),
        ("Unsere Bücher sind in den Häusern.", "Buch und Haus"),
        ("Er wohnt in der Straße.", "STRASSE"),
        ("员工每年有三十天年假。", "年假有几天"),
        ("従業員は年に三十日の休暇を取れます。", "休暇の日数"),
        ("ﾃﾞｰﾀの保護", "データ"),
        ("A résumé in the café", "resume"),
        ("Use ISO-9001 here", "iso 9001"),
        ("The company's cars", "company car"),
        ("Хорошие книги", "книги"),
        ("한국어 문서", "한국어"),
    ],
)
def test_a_question_shares_terms_with_its_passage(passage: str, question: str) -> None:
    assert set(question_terms(question)) & set(passage_terms(passage))


def test_stop_words_are_those_of_the_passages_language() -> None:
    assert passage_terms("the man will die in the war") == ["man", "die", "war"]
    assert passage_terms("und der Mann ist in dem Haus") == ["mann", "haus"]


def test_terms_repeat_in_passages_and_not_in_questions() -> None:
    assert passage_terms("data data") == ["data", "data"]
    assert question_terms("heating heating") == ["heat", "heating"]  # English, German
    assert question_terms(" \n!?") == []


TEXTS = ["apple pie", "apple apple tart", "plum tart", "", "an apple a day"]


@pytest.fixture
def engine(tmp_path: Path) -> bm25.Bm25:
    bm25.build(tmp_path, TEXTS)
    return bm25.Bm25.open(tmp_path)


def test_the_best_comes_first(engine: bm25.Bm25) -> None:
    scores, numbers = engine.search("apples", 10, None)
    assert numbers.tolist()[0] == 1
    assert set(numbers) == {0, 1, 4}
    assert sorted(scores, reverse=True) == scores.tolist()
    assert len(engine) == len(TEXTS)


def test_a_rare_word_counts_more(engine: bm25.Bm25) -> None:
    assert engine.search("apple plum", 1, None)[1].tolist() == [2]


def test_only_allowed_passages_are_ranked(engine: bm25.Bm25) -> None:
    allowed = Allowed(np.array([True, False, False, True, True]))
    assert set(engine.search("apple tart", 10, allowed)[1]) == {0, 4}


def test_equal_scores_come_in_the_order_of_the_snapshot(tmp_path: Path) -> None:
    bm25.build(tmp_path, ["same words"] * 20)
    assert bm25.Bm25.open(tmp_path).search("words", 5, None)[1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("question", ["", "?", "unheard of", "the"])
def test_words_that_occur_nowhere_find_nothing(engine: bm25.Bm25, question: str) -> None:
    assert len(engine.search(question, 10, None)[1]) == 0


def test_passages_without_any_term_can_be_indexed(tmp_path: Path) -> None:
    bm25.build(tmp_path, ["", "?!"])
    assert len(bm25.Bm25.open(tmp_path).search("x", 5, None)[1]) == 0


def test_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        bm25.build(tmp_path / name, TEXTS)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
