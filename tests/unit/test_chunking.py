from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tritonrag.chunking import Chunker, ChunkSettings, Passage
from tritonrag.documents import SourceFile, parse_document
from tritonrag.errors import InvalidRequest


def tokenizer() -> Tokenizer:
    """One token a word and a punctuation mark."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def chunker(tokens: int = 32, overlap: int = 8, prefix: str = "") -> Chunker:
    return Chunker(tokenizer(), ChunkSettings(tokens, overlap), 64, prefix)


def cut(markdown: str, tokens: int = 32, overlap: int = 8) -> list[Passage]:
    document = parse_document(SourceFile(Path("a.md"), "a.md"), markdown.encode())
    return list(chunker(tokens, overlap).passages(document))


def count(text: str) -> int:
    return len(tokenizer().encode(text).ids)


SENTENCES = [f"Sentence number {number} has nine words in it." for number in range(12)]
LONG = "# Title\n\n" + " ".join(SENTENCES[:6]) + "\n\n" + "\n".join(SENTENCES[6:])


def test_headings_first() -> None:
    found = cut("# Travel\n\nIntro.\n\n## Hotels\n\nBook early.\n\n### Rates\n\n120 euros.")
    assert [(one.location, one.text) for one in found] == [
        ("Travel", "Intro."),
        ("Travel > Hotels", "Book early."),
        ("Travel > Hotels > Rates", "120 euros."),
    ]
    assert chunker().embedded_text(found[2]) == "Travel > Hotels > Rates\n120 euros."


def test_whole_sentences_within_the_budget_with_overlap() -> None:
    found = cut(LONG, overlap=9)
    made = chunker(overlap=9)
    assert all(count(made.embedded_text(one)) <= 32 for one in found)
    texts = [one.text for one in found]
    assert all(text.startswith("Sentence") and text.endswith(".") for text in texts)
    for above, below in zip(texts, texts[1:], strict=False):
        last = [sentence for sentence in SENTENCES if sentence in above][-1]
        assert below.startswith(last)
    assert [s for s in SENTENCES if not any(s in text for text in texts)] == []


def test_no_overlap() -> None:
    texts = [one.text for one in cut(LONG, overlap=0)]
    assert "".join("".join(texts).split()) == "".join("".join(SENTENCES).split())


def test_paragraphs_and_items_keep_their_shape() -> None:
    (found,) = cut(
        "First line\nof one.\n\nSecond.\n\n- a b\n- c\n\n| x | y |\n|---|---|\n| 1 | 2 |"
    )
    assert found.text == "First line of one.\n\nSecond.\n\n- a b\n- c\n\nx | y\n1 | 2"


def test_code_keeps_its_lines() -> None:
    (found,) = cut("```py\nif x:\n\n    y = 1\n```")
    assert found.text == "if x:\n\n    y = 1"


def test_offsets_are_those_of_the_file() -> None:
    source = "# T\n\nSome *text* here. And\nmore. " + " ".join(SENTENCES) + "\n\n1. An item.\n"
    for one in cut(source):
        words = one.text.split()
        quoted = source[one.start : one.end].split()
        assert (quoted[0], quoted[-1]) == (words[0], words[-1])


@pytest.mark.parametrize("text", ["word " * 300, "x" * 5000, "漢字" * 300, "a " + "y" * 900])
def test_a_sentence_over_the_budget_is_split(text: str) -> None:
    found = cut(text.strip())
    made = chunker()
    assert len(found) > 1
    assert all(count(made.embedded_text(one)) <= 32 for one in found)
    assert all(len(one.text) <= 320 for one in found)
    assert "".join("".join(one.text for one in found).split()).startswith(
        "".join(text.split())[:300]
    )


def test_words_are_not_cut() -> None:
    words = [f"word{number}" for number in range(100)]
    found = cut(" ".join(words), overlap=0)
    assert [word for one in found for word in one.text.split()] == words


def test_a_long_heading_leaves_room_for_text() -> None:
    found = cut("# " + "long " * 60 + "\n\n" + " ".join(SENTENCES[:3]))
    made = chunker()
    assert all(count(made.embedded_text(one)) <= 32 for one in found)
    assert found[0].title == ("long " * 60).strip()


def test_the_prefix_counts() -> None:
    document = parse_document(SourceFile(Path("a.md"), "a.md"), LONG.encode())
    made = chunker(prefix="passage of text: ")
    texts = [made.embedded_text(one) for one in made.passages(document)]
    assert max(count("passage of text: " + text) for text in texts) <= 32
    with pytest.raises(InvalidRequest, match="no room beside the embedder's prefix"):
        chunker(tokens=16, overlap=0, prefix="many words " * 6)


def test_the_same_file_gives_the_same_passages() -> None:
    assert cut(LONG) == cut(LONG)
    repeated = cut("Same.\n\n## H\n\nSame.\n\n## I\n\nSame.")
    assert len({one.id for one in repeated}) == 3


def test_json_and_back() -> None:
    passage = cut('# T\n\n## H\n\n"Größe" \\ 漢字\u2028x.')[0]
    line = passage.to_json()
    assert b"\n" not in line
    assert Passage.from_json(line) == passage
    assert json.loads(line) == {
        "id": passage.id,
        "text": passage.text,
        "source": "a.md",
        "title": "T",
        "location": "T > H",
        "heading_path": ["H"],
        "place": "",
        "start": passage.start,
        "end": passage.end,
    }


@pytest.mark.parametrize(
    ("tokens", "overlap", "field"),
    [(15, 0, "--chunk-tokens"), (65, 0, "--chunk-tokens"), (32, 17, "overlap"), (32, -1, "over")],
)
def test_settings_out_of_range(tokens: int, overlap: int, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        ChunkSettings(tokens, overlap).check(max_tokens=64)
