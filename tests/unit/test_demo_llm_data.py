"""The demo LLM's training data: prose out of markup, held-back documents, questions, examples."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("tokenizers")
sys.path.insert(0, str(Path(__file__).parents[2] / "export" / "demo_llm"))

from corpus import annotated, answering, chunks, documents, held_back, plain, prose  # noqa: E402
from examples import (  # noqa: E402
    CURRICULUM,
    END,
    PAD,
    POINTERS,
    Passage,
    Sampler,
    Task,
    encode,
    window,
)
from policies import question, section  # noqa: E402
from questions import Asker, content_words  # noqa: E402
from tokenizer import train  # noqa: E402

from tritonrag.prompting import user_message  # noqa: E402
from tritonrag.quoting import REFUSAL, pointed_answers, pointer, quotes  # noqa: E402

LEAVE = (
    "Full-time staff get 25 days of annual leave.",
    "You must ask Mira Okafor two weeks before a holiday.",
    "Unused days expire on 31 March 2031.",
)
LAPTOP = ("Laptops are replaced every four years.", "Return the old one to the service desk.")


@pytest.fixture(scope="module")
def tokenizer():
    return train(iter([*LEAVE, *LAPTOP, f"Question: ?\n\n[1] [2]\nAnswer: {REFUSAL}"] * 3), 600)


@pytest.fixture
def asker() -> Asker:
    return Asker({}, {"holiday": ["vacation"]})


def test_prose_drops_code_and_directives() -> None:
    text = "# Pay\n\nPaid *on* **the 25th** of [each](x.md) month."
    text += "\n\n```\ncode.\n\nmore.\n```\n\n.. note::"
    assert list(prose(text)) == [("Pay", "Paid *on* the 25th of each month.")]


def test_plain_takes_inline_markup_off() -> None:
    assert plain("See :c:func:`Foo`, ``bar`` and `baz`_.") == "See Foo, bar and baz."


def test_chunks_stay_under_one_heading() -> None:
    paragraphs = [("A", "One one. Two two."), ("B", "Three three. Four four.")]
    found = list(chunks(paragraphs, 100))
    assert found == [("A", ["One one.", "Two two."]), ("B", ["Three three.", "Four four."])]


def test_a_span_over_two_sentences_has_both_as_targets() -> None:
    assert answering(list(LAPTOP), "four years. Return the old") == [0, 1]
    assert answering(list(LAPTOP), "five years") == []


def test_rows_whose_answer_is_not_in_the_passage_are_dropped() -> None:
    row = {"question": "q", "passage": " ".join(LAPTOP), "answer": "nowhere", "source": "s"}
    assert annotated(row) is None
    assert annotated({**row, "answer": "every  four"})["targets"] == [0]


def test_passages_that_share_a_long_sentence_are_one_document() -> None:
    shared = "You must ask Mira Okafor two weeks before a holiday."
    found = documents([["First.", shared], [shared.upper()], ["Other."]])
    assert found[0] == found[1] != found[2]


def test_held_back_takes_whole_documents() -> None:
    shared = "You must ask Mira Okafor two weeks before holiday {}."
    rows = [{"source": "s", "sentences": [shared.format(n // 2)]} for n in range(40)]
    chosen = held_back(rows, 0.1)
    assert len(chosen) == 4
    assert all(n ^ 1 in chosen for n in chosen)


def test_questions_are_reproducible_and_about_the_sentence(asker: Asker) -> None:
    for sentence in LEAVE:
        first = [asker.ask(sentence, Random(n)) for n in range(50)]
        assert first == [asker.ask(sentence, Random(n)) for n in range(50)]
        assert len(set(first)) > 10
    asked = {(asker.ask(LEAVE[0], Random(n)) or "").lower() for n in range(200)}
    assert any(question.startswith(("how many days", "how long")) for question in asked)


def test_neighbours_stand_in_for_words(asker: Asker) -> None:
    asked = [asker.ask(LEAVE[1], Random(n)) or "" for n in range(100)]
    assert any("vacation" in question for question in asked)


def test_a_sentence_that_says_too_little_gets_no_question(asker: Asker) -> None:
    assert asker.ask("This is it.", Random(0)) is None


def test_content_words_leave_stop_words_out() -> None:
    assert content_words("What is the notice period?") == ["notice", "period"]


def test_an_example_is_prompt_and_answer_as_served(tokenizer) -> None:
    task = Task("How many days?", (Passage("Leave", LEAVE), Passage("", LAPTOP)), ((0, 0), (1, 1)))
    example = encode(task, tokenizer)
    prompt = tokenizer.decode(example.ids[: example.prompt_length], skip_special_tokens=False)
    answer = tokenizer.decode(example.ids[example.prompt_length : -1], skip_special_tokens=False)
    passages = [("Leave", " ".join(LEAVE)), ("", " ".join(LAPTOP))]
    asked = user_message("How many days?", passages, POINTERS)
    assert prompt == task.prompt() == f"{asked}\nAnswer:"
    allowed = list(quotes([(1, " ".join(LEAVE)), (2, " ".join(LAPTOP))]))
    written = pointed_answers(allowed, POINTERS)
    assert answer == written[0] + written[4]
    assert example.ids[-1] == tokenizer.token_to_id(END)
    assert example.answers == [True, False, False, False, True]
    shown = [tokenizer.id_to_token(example.ids[place]) for place in example.pointers]
    assert shown == [pointer(number) for number in range(1, 6)]


def test_choices_are_the_pointers_and_the_end(tokenizer) -> None:
    task = Task("How many days?", (Passage("Leave", LEAVE), Passage("", LAPTOP)), ((0, 0), (1, 1)))
    for shift in (0, 3, POINTERS - 2):
        example = encode(task, tokenizer, shift)
        wanted = [example.ids[example.pointers[n]] for n in (0, 4)]
        assert [id for _, id in example.choices] == [*wanted, tokenizer.token_to_id(END)]
        assert all(example.ids[place + 1] == id for place, id in example.choices)
        assert example.choices[0][0] == example.prompt_length - 1


def test_no_targets_are_a_refusal(tokenizer) -> None:
    example = encode(Task("Who?", (Passage("", LAPTOP),), ()), tokenizer)
    assert tokenizer.decode(example.ids[example.prompt_length : -1]) == f" {REFUSAL}"
    refusal = tokenizer.token_to_id(pointer(0))
    assert example.choices == [(example.prompt_length - 1, refusal)]
    assert not any(example.answers)
    assert tokenizer.token_to_id(PAD) == 0


def test_a_window_holds_the_targets() -> None:
    for seed in range(20):
        found = window("abcdefgh", [3, 4], 4, Random(seed))
        assert len(found) == 4
        assert {3, 4} <= set(found)
    assert list(window("ab", [], 9, Random(0))) == [0, 1]


def test_sampled_tasks_are_answerable_or_refused_as_marked(asker: Asker) -> None:
    pool = [{"group": "s", "heading": "", "sentences": list(text)} for text in (LEAVE, LAPTOP) * 3]
    rows = [{"question": "When do unused days expire?", "sentences": list(LEAVE),
             "answer": "31 March 2031", "targets": [2], "source": "s"}]  # fmt: skip
    sampler = Sampler(pool, rows, asker)
    random = Random(1)
    tasks = [sampler.draw(stage, random) for stage in CURRICULUM for _ in range(50)]
    assert any(not task.targets for task in tasks)
    for task in tasks:
        said = [sentence for sentence, _, answers in task.sentences() if answers]
        assert bool(said) == bool(task.targets)
        assert said == [task.passages[p].sentences[s] for p, s in sorted(task.targets)]


def test_invented_sections_state_each_attribute_once() -> None:
    for seed in range(40):
        facts = section(Random(seed), 3, 8)
        assert 0 < len(facts) <= 8
        assert len({(fact.thing.name, fact.kind) for fact in facts}) == len(facts)
        for fact in facts:
            assert "{" not in fact.sentence + question(fact, Random(seed))
