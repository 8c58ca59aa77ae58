"""Tables, code, pages and scripts in chunks."""

from __future__ import annotations

import pytest
from format_samples import parsed, pdf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from tritonrag.chunking import Chunker, ChunkSettings, Passage
from tritonrag.documents import Document


def chunks(document: Document, tokens: int = 32, overlap: int = 8) -> list[Passage]:
    """Cut with one token a word, a punctuation mark and a Chinese or Japanese character."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    wide = pre_tokenizers.Split(pattern=Regex(r"[\u3040-\u9fff]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([wide, pre_tokenizers.Whitespace()])
    made = Chunker(tokenizer, ChunkSettings(tokens, overlap), 64)
    found = list(made.passages(document))
    sizes = [len(tokenizer.encode(made.embedded_text(one)).ids) for one in found]
    assert max(sizes) <= tokens
    return found


def table(rows: int) -> str:
    lines = "".join(f"| city{row} | {row} | {row} |\n" for row in range(rows))
    return f"# T\n\nBefore it.\n\n| City | Nights | Limit |\n|---|---|---|\n{lines}\nAfter it.\n"


def test_a_table_that_fits_stays_whole() -> None:
    document = parsed(
        "a.md", ("# T\n\n" + "Many words stand here first. " * 3 + table(2)[5:]).encode()
    )
    texts = [one.text for one in chunks(document, overlap=0)]
    whole = "City | Nights | Limit\ncity0 | 0 | 0\ncity1 | 1 | 1"
    assert [whole in text for text in texts] == [False, True]


@pytest.mark.parametrize("overlap", [0, 12])
def test_every_piece_of_a_table_has_its_header(overlap: int) -> None:
    document = parsed("a.md", table(20).encode())
    found = [one for one in chunks(document, overlap=overlap) if "city" in one.text]
    assert len(found) > 3
    for one in found:
        lines = one.text.split("\n")
        rows = [line for line in lines if line.startswith("city")]
        assert one.text.count("City | Nights | Limit") == 1
        assert lines.index("City | Nights | Limit") < lines.index(rows[0])
    for one in found[1:]:
        quoted = document.text[one.start : one.end]
        assert quoted.startswith("city")
        assert "City" not in quoted
    rows_found = {line for one in found for line in one.text.split("\n")}
    assert {f"city{row} | {row} | {row}" for row in range(20)} <= rows_found


def test_a_header_that_leaves_no_room_is_not_repeated() -> None:
    header = ",".join(f"column{number}" for number in range(12))
    rows = "\n".join(",".join(["x"] * 12) for _ in range(5))
    found = chunks(parsed("a.csv", f"{header}\n{rows}\n".encode()), overlap=0)
    assert sum("column0" in one.text for one in found) == 1


def test_a_row_over_the_budget_is_cut_under_its_header() -> None:
    found = chunks(parsed("a.csv", ("City,Note\nBonn," + "word " * 60).encode()), overlap=0)
    assert len(found) > 2
    assert all(one.text.startswith("City | Note\n") for one in found)


def test_code_that_fits_stays_whole() -> None:
    code = "\n".join(f"step {number} is done" for number in range(6))
    text = f"# T\n\n{'Some words stand here. ' * 4}\n\n```\n{code}\n```\n"
    texts = [one.text for one in chunks(parsed("a.md", text.encode()), overlap=0)]
    assert [code in one for one in texts] == [False, True]


def test_passages_stay_on_their_page() -> None:
    document = parsed("h.pdf", pdf([["Short one."], ["Short two."]], [("Travel", 0, None)]))
    found = chunks(document)
    assert [(one.place, one.text, one.location) for one in found] == [
        ("page 1", "Short one.", "h, page 1, Travel"),
        ("page 2", "Short two.", "h, page 2, Travel"),
    ]
    assert [document.text[one.start : one.end] for one in found] == ["Short one.", "Short two."]
    assert Passage.from_json(found[0].to_json()) == found[0]


def test_the_place_alone_locates_a_page_without_headings() -> None:
    assert chunks(parsed("h.pdf", pdf([["Short."]])))[0].location == "h, page 1"


@pytest.mark.parametrize(
    ("sentences", "end"),
    [
        (
            ["これは一つ目の文です。", "「二つ目」もあります。", "三つ目の文はここで終わります。"],
            "。",
        ),
        (["这是第一句话。", "第二句话是问题吗?", "第三句话到这里结束了!"], "。?!"),
        (["هذه هي الجملة الأولى هنا.", "هل هذه هي الجملة الثانية؟", "هذه هي الأخيرة."], ".؟"),
        (["यह पहला वाक्य यहाँ है।", "यह दूसरा वाक्य है।", "तीसरा वाक्य यहाँ समाप्त होता है।"], "।"),
        (["Это первое предложение.", "Пришли, т. е. вернулись, все.", "Это третье."], "."),
    ],
)
def test_sentences_of_other_scripts_stay_whole(sentences: list[str], end: str) -> None:
    gap = "" if end in ("。", "。?!") else " "
    text = gap.join(sentences * 4)
    found = chunks(parsed("a.txt", text.encode()), tokens=40, overlap=0)
    assert len(found) > 1
    assert all(one.text.startswith(tuple(sentences)) and one.text[-1] in end for one in found)
    assert [text[one.start : one.end] for one in found] == [one.text for one in found]
    assert "".join("".join(one.text for one in found).split()) == "".join(text.split())


def test_the_same_file_gives_the_same_passages() -> None:
    content = pdf([["Short one."], ["Short two."], ["Short one."]])
    first, second = (chunks(parsed("h.pdf", content)) for _ in range(2))
    assert first == second
    assert len({one.id for one in first}) == 3
