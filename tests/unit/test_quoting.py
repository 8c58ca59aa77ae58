"""Sentences, and the grammar that holds an answer to them, compiled by llguidance itself."""

from __future__ import annotations

import random
import re
import string
import time
import unicodedata

import pytest
from llguidance import LLMatcher, LLTokenizer, grammar_from

from tritonrag.errors import InvalidRequest
from tritonrag.graph.escaping import unmarked
from tritonrag.quoting import (
    MAX_QUOTES,
    MAX_SENTENCE_CHARS,
    REFUSAL,
    SEGMENT_CHARS,
    mark,
    pointed,
    pointed_answers,
    pointer,
    quote_grammar,
    quotes,
    sentences,
)

BYTES = LLTokenizer("byte")

Citations = list[tuple[int, str]]

LEAVE: Citations = [(1, "You have 25 days. Ask Anna."), (2, "Bikes are green.")]

HOSTILE: dict[str, Citations] = {
    "quotes": [(1, 'She said "no" and \'never\'. He wrote """twice""".')],
    "backslashes": [(1, r"C:\new\table and \" and \\ and \u0041 and \x41. A trailing one \ ")],
    "newlines": [(1, "One\r\nline.\n\n\nTwo\u2028lines\u2029and\x85more.\tTab.")],
    "control characters": [(1, "a\0b\x01c\x1b[31mred\x7f\x9f. Bell\a.")],
    "emoji": [(1, "Family \U0001f468\u200d\U0001f469\u200d\U0001f467 and flag 🇫🇷. Thumb 👍🏽!")],
    "right to left": [(1, "שלום לכולם. مرحبا بالعالم؟ نعم\u061c. \u202eevil\u202c.")],
    "joiners": [(1, "می\u200cخواهم بروم. क्\u200dष अक्षर।")],
    "chinese": [(1, "员工每年有二十五天年假。请联系安娜！好吗？"), (2, "東京は、日本の首都です。")],
    "lark syntax": [(1, 'start: "a" | /b/ {c} %import common.WS -> d [e] (f)? // g. <|eos|> ok.')],
    "json": [(1, '{"key": ["value", null, 1e9], "\\u00e9": "\\n"}')],
    "code": [(1, "def f(x):\n    return {'a': x[0] ** 2}  # why\n\nassert f([3]) == {'a': 9}\n")],
    "table": [(1, "| a | b |\n|---|---|\n" + "| 1,000 | 2.50 € |\n" * 40)],
    "no sentence end": [(1, "word " * 2000)],
    "one long word": [(1, "x" * 10_000)],
    "a hundred passages": [
        (n, f"Passage {n} says that room {n * 7} is open. It closes at {n}:30.")
        for n in range(1, 101)
    ],
    "marks in the text": [(1, "See [1] and [2]. [3]"), (2, "[1]")],
    "private use": [(1, "icon \ue000 here. new emoji \U0001fae9.")],
    "combining": [(1, "cafe\u0301 e\u0301" + "\u0301" * 500 + ".")],
}


def matcher(citations: Citations) -> LLMatcher:
    grammar = grammar_from("lark", quote_grammar(citations, lambda text: list(text.encode())))
    assert not LLMatcher.validate_grammar(grammar, BYTES)
    return LLMatcher(BYTES, grammar)


def accepts(citations: Citations, answer: str) -> bool:
    """Return whether the decoder could write exactly ``answer``."""
    run = matcher(citations)
    tokens = BYTES.tokenize_bytes(answer.encode())
    return run.try_consume_tokens(tokens) == len(tokens) and run.is_accepting()


@pytest.mark.parametrize("name", HOSTILE)
def test_any_text_gives_a_grammar_that_compiles_and_takes_every_quote(name: str) -> None:
    allowed = list(quotes(HOSTILE[name]))
    assert allowed
    for quote in allowed[:: max(1, len(allowed) // 10)]:
        assert accepts(HOSTILE[name], quote), quote


def test_random_text_compiles() -> None:
    rng = random.Random(3)
    alphabet = string.printable + "\0\x1b\x7f«»“”‘’…—。！？؟،।\u200b\u200d\u2028\ufeff\U0001f600é"
    for _ in range(60):
        text = "".join(rng.choices(alphabet, k=rng.randrange(1, 400)))
        for quote in list(quotes([(1, text)]))[:1]:
            assert accepts([(1, text)], quote), text


@pytest.mark.parametrize(
    "answer",
    [
        "You have 25 days. [1]",
        " You have 25 days. [1]",
        "Ask Anna. [1] Bikes are green. [2]",
        "Bikes are green. [2] You have 25 days. [1] Ask Anna. [1]",
        REFUSAL,
        f" {REFUSAL}",
    ],
)
def test_answers_of_whole_sentences_with_their_marks(answer: str) -> None:
    assert accepts(LEAVE, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "You have 26 days. [1]",
        "You have 25 days.",
        "You have 25 days. [2]",
        "You have 25 days. [1]Ask Anna. [1]",
        "You have 25 days. [1] You",
        "Ask Anna. [1] Ask Anna. [1] Ask Anna. [1] Ask Anna. [1]",
        f"{REFUSAL} Ask Anna. [1]",
        "You have 25 days. [1] and more",
    ],
)
def test_anything_else_cannot_be_written(answer: str) -> None:
    assert not accepts(LEAVE, answer)


@pytest.mark.parametrize("citations", [[], [(1, "")], [(1, "*** --- ...")]])
def test_without_a_sentence_only_the_refusal_is_left(citations: Citations) -> None:
    assert accepts(citations, REFUSAL)
    assert not accepts(citations, "Yes. [1]")


def test_at_most_three_quotes() -> None:
    assert MAX_QUOTES == 3
    assert accepts(LEAVE, " ".join(["Ask Anna. [1]"] * 3))


def test_a_sentence_in_several_passages_is_quoted_from_the_best() -> None:
    found = list(quotes([(1, "Ask Anna. Call Ben."), (2, "Ask  Anna. Write to Cleo.")]))

    assert found == ["Ask Anna. [1]", "Call Ben. [1]", "Write to Cleo. [2]"]


def test_tokens_are_those_of_the_text_in_its_place() -> None:
    """A tokenizer may join the space to the word, and spell a word at the start of text apart."""

    def encode(text: str) -> list[int]:
        words = text.replace(" ", "|_").split("|")
        return [ord(word[0]) * 1000 + len(word) for word in words if word]

    grammar = quote_grammar([(1, "Ask Anna.")], encode)

    assert f"next: {' '.join(f'<[{id}]>' for id in encode('] Ask Anna. [1]')[1:])}" in grammar


def pointer_ids(text: str) -> list[int]:
    """Spell text as bytes, and each pointer as one byte that no UTF-8 text has."""
    parts = re.split("\x02(\\d+)\x03", text)
    return [
        byte
        for place, part in enumerate(parts)
        for byte in ([0xF8 + int(part)] if place % 2 else part.encode())
    ]


@pytest.mark.parametrize(
    "answer", ["1 You have 25 days. [1]", "2 Ask Anna. [1]3 Bikes are green. [2]"]
)
def test_an_llm_with_pointers_writes_one_before_each_quote(answer: str) -> None:
    spelled = re.sub(r"(?<!\d)([123]) (?=[A-Z])", "\x02\\1\x03 ", answer)
    run = LLMatcher(BYTES, grammar_from("lark", quote_grammar(LEAVE, pointer_ids, 8)))
    tokens = pointer_ids(spelled)
    assert run.try_consume_tokens(tokens) == len(tokens)
    assert run.is_accepting()


@pytest.mark.parametrize("order", ["11", "32", "121", "1233"])
def test_with_pointers_no_sentence_is_quoted_twice_or_out_of_order(order: str) -> None:
    """For an LLM that chooses by one token, a repetition is as near as the choice itself."""
    answers = pointed_answers(list(quotes(LEAVE)), 8)
    run = LLMatcher(BYTES, grammar_from("lark", quote_grammar(LEAVE, pointer_ids, 8)))
    tokens = [id for number in order for id in pointer_ids(answers[int(number) - 1])]
    assert run.try_consume_tokens(tokens) < len(tokens)


@pytest.mark.parametrize("answer", ["You have", "\x022\x03 You", "\x020\x03 Ask", "\x024\x03"])
def test_a_pointer_goes_with_its_own_quote_alone(answer: str) -> None:
    run = LLMatcher(BYTES, grammar_from("lark", quote_grammar(LEAVE, pointer_ids, 8)))
    tokens = pointer_ids(answer)
    assert run.try_consume_tokens(tokens) < len(tokens)


def test_more_sentences_than_pointers_share_the_last() -> None:
    found = pointed_answers([f"{n}. [1]" for n in range(1, 5)], pointers=3)

    assert [answer.partition(" ")[0] for answer in found] == [
        pointer(n) for n in (1, 2, 2, 2, 0)
    ]  # fmt: skip


def test_pointers_stand_where_the_quotes_are_counted() -> None:
    """A sentence that stood before has no pointer, as it has no quote of its own."""
    texts = ["Ask Anna. Call Ben.", "Ask  Anna. Write to Cleo."]
    shown = " ".join(pointed(map(sentences, texts), 10))

    for number, quote in enumerate(quotes(enumerate(texts, 1)), 1):
        assert f"{pointer(number)} {quote.rpartition(' ')[0]}{pointer(number)}" in shown
    assert shown.count("\x02") == 2 * 3


@pytest.mark.parametrize("pointers", [0, 8])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x " * 300_000, "citations: 600000 bytes of text to quote from, at most 262144; send"),
        (" ".join(f"It is {n}." for n in range(1001)), "citations: 1001 sentences to quote from"),
        (" ".join(f"It is {n}." for n in range(20_000)), "citations: 20000 sentences to quote"),
    ],
)
def test_a_grammar_is_made_of_so_much_text_only(text: str, message: str, pointers: int) -> None:
    began = time.process_time()
    with pytest.raises(InvalidRequest, match=message):
        quote_grammar([(1, text)], pointer_ids, pointers)

    assert time.process_time() - began < 0.3


def test_a_quoted_mark_is_no_mark() -> None:
    assert list(quotes([(1, "See [2] and [ 3 ]."), (2, "[1]")])) == [
        "See (2) and ( 3 ). [1]",
        "(1) [2]",
    ]


@pytest.mark.parametrize(
    "text", ["\u201c" * 80_000, "(" * 250_000, '"a" ' * 60_000, "a. " * 80_000]
)
def test_splitting_takes_time_in_proportion(text: str) -> None:
    began = time.process_time()
    sentences(text)

    assert time.process_time() - began < 2


def test_a_long_text_is_split_like_a_short_one() -> None:
    text = "\n".join(f"Room {n} is open. It closes at {n}:30." for n in range(2000))

    assert len(text) > 10 * SEGMENT_CHARS
    assert sentences(text) == [
        sentence
        for n in range(2000)
        for sentence in (f"Room {n} is open.", f"It closes at {n}:30.")
    ]


def test_marks() -> None:
    assert mark(12) == "[12]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        (
            "It costs 3.5 % of it, e.g. nothing. Yes.",
            ["It costs 3.5 % of it, e.g. nothing.", "Yes."],
        ),
        ("多少天？二十五天。", ["多少天？", "二十五天。"]),
        ("a  b\n c.", ["a b c."]),
        ("***", []),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize("name", HOSTILE)
def test_sentences_are_verbatim_and_short(name: str) -> None:
    """Apart from white space, control characters and marks every sentence stands in its text."""
    for _, text in HOSTILE[name]:
        plain = " ".join(
            "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
            .split()
        )  # fmt: skip
        for sentence in sentences(text):
            assert sentence in unmarked(plain)
            assert 0 < len(sentence) <= MAX_SENTENCE_CHARS


def test_no_text_of_a_long_sentence_is_lost() -> None:
    text = "alpha beta, gamma; " * 100

    assert " ".join(sentences(text)) == text.strip()


@pytest.mark.parametrize("filler", range(380, 402))
def test_a_long_sentence_is_never_cut_inside_a_number_or_a_time(filler: int) -> None:
    text = "w" * filler + " 25,000 euros at 10:30 " + "z" * 40

    pieces = sentences(text)

    assert any("25,000" in piece for piece in pieces)
    assert any("10:30" in piece for piece in pieces)
