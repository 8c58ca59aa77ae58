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
    Example,
    Passage,
    Question,
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


TASK = Task(
    (Passage("Leave", LEAVE), Passage("", LAPTOP)),
    (
        Question("How many days?", ((0, 0), (1, 1)), written=True),
        Question("When do they expire?", ((0, 2),)),
        Question("Who?", (), written=True),
    ),
)


def part(example: Example, number: int) -> list[int]:
    return [id for id, of in zip(example.ids, example.parts, strict=True) if of == number]


def test_passages_and_a_question_are_the_prompt_as_served(tokenizer) -> None:
    example = encode(TASK, tokenizer)
    passages = [("Leave", " ".join(LEAVE)), ("", " ".join(LAPTOP))]
    for number, asked in enumerate(TASK.questions, 1):
        message = user_message(asked.text, passages, POINTERS)
        prompt = TASK.prompt(asked.text)
        assert prompt == f"{message}\nAnswer:"
        length = len(tokenizer.encode(prompt).ids)
        assert (part(example, 0) + part(example, number))[:length] == tokenizer.encode(prompt).ids


def test_a_question_stands_right_after_the_passages(tokenizer) -> None:
    example = encode(TASK, tokenizer)
    read = example.parts.count(0)
    for number in range(4):
        places = [p for p, of in zip(example.positions, example.parts, strict=True) if of == number]
        assert places == list(range(places[0], places[0] + len(places)))
        assert places[0] == (read if number else 0)


def test_a_written_answer_is_what_the_grammar_allows(tokenizer) -> None:
    example = encode(TASK, tokenizer)
    allowed = list(quotes([(1, " ".join(LEAVE)), (2, " ".join(LAPTOP))]))
    answers = pointed_answers(allowed, POINTERS)
    text = tokenizer.decode(part(example, 1), skip_special_tokens=False)
    assert text.partition("Answer:")[2] == answers[0] + answers[4]
    assert tokenizer.decode(part(example, 2)).endswith("Answer:")


def test_choices_are_pointers_the_end_and_the_refusal(tokenizer) -> None:
    end, refusal = tokenizer.token_to_id(END), tokenizer.token_to_id(pointer(0))
    for shift in (0, 3, POINTERS - 2):
        example = encode(TASK, tokenizer, shift)
        ids = [example.ids[place] for place in example.pointers]
        assert len(set(ids)) == 5
        assert [choice.wanted for choice in example.choices] == [
            ids[0],
            ids[4],
            end,
            ids[2],
            refusal,
        ]
        assert [choice.first for choice in example.choices] == [True, False, False, True, True]
        following = [example.ids[choice.place + 1] for choice in example.choices[:2]]
        assert following == [ids[0], ids[4]]
        assert example.answers[0] == [True, False, False, False, True]
        assert not any(example.answers[2])
    assert tokenizer.token_to_id(PAD) == 0


def test_pointers_are_those_after_the_sentences(tokenizer) -> None:
    example = encode(TASK, tokenizer)
    for number, place in enumerate(example.pointers):
        assert tokenizer.decode(example.ids[:place])[-8:] == (*LEAVE, *LAPTOP)[number][-8:]
        assert tokenizer.id_to_token(example.ids[place]) == pointer(number + 1)


def test_a_window_holds_the_targets() -> None:
    for seed in range(20):
        found = window("abcdefgh", [3, 4], 4, Random(seed))
        assert len(found) == 4
        assert {3, 4} <= set(found)
    assert list(window("ab", [], 9, Random(0))) == [0, 1]


def test_sampled_tasks_are_answerable_or_refused_as_marked(asker: Asker) -> None:
    pool = [{"group": "s", "heading": "", "sentences": list(text)} for text in (LEAVE, LAPTOP) * 3]
    rows = [
        {"question": "When do unused days expire?", "sentences": list(LEAVE),
         "answer": "31 March 2031", "targets": [2], "source": "s"},
        {"question": "How often are laptops replaced?", "sentences": list(LAPTOP),
         "answer": "four years", "targets": [0], "source": "s"},
    ]  # fmt: skip
    sampler = Sampler(pool, rows, asker)
    random = Random(1)
    tasks = [sampler.draw(stage, random) for stage in CURRICULUM for _ in range(50)]
    asked = [(task, each) for task in tasks for each in task.questions]
    assert any(not each.targets for _, each in asked)
    for task, each in asked:
        said = [task.passages[p].sentences[s] for p, s in each.targets]
        if each.text.startswith("When do unused days expire"):
            assert said in ([], [LEAVE[2]])
            assert bool(said) == any(LEAVE[2] in passage.sentences for passage in task.passages)


def test_invented_sections_state_each_attribute_once() -> None:
    for seed in range(40):
        facts = section(Random(seed), 3, 8)
        assert 0 < len(facts) <= 8
        assert len({(fact.thing.name, fact.kind) for fact in facts}) == len(facts)
        for fact in facts:
            assert "{" not in fact.sentence + question(fact, Random(seed))
