from __future__ import annotations

import pytest
from format_samples import parsed, pdf, rows

from tritonrag.errors import InvalidRequest

HANDBOOK = pdf(
    [
        [
            "Travel",
            "Whoever travels for work keeps every receipt and hands it in with-",
            "in a month.",
        ],
        ["Hotels", "Rooms are booked by the travel desk, at the rates of the contract,", "early."],
        ["Meals are paid for by the day."],
    ],
    [("Travel", 0, None), ("Hotels", 1, 0), ("Appendix", 2, None)],
    {"/Title": "Handbook", "/Author": "The desk", "/CreationDate": "D:20260105093000Z"},
)


def test_pages_and_bookmarks() -> None:
    document = parsed("h.pdf", HANDBOOK)
    assert document.title == "Handbook"
    assert rows(document) == [
        ("page 1", ("Travel",), "text",
         "Whoever travels for work keeps every receipt and hands it in within a month."),
        ("page 2", ("Travel", "Hotels"), "text",
         "Rooms are booked by the travel desk, at the rates of the contract, early."),
        ("page 3", ("Appendix",), "text", "Meals are paid for by the day."),
    ]  # fmt: skip
    assert document.metadata.created == "2026-01-05T09:30:00+00:00"
    assert document.metadata.fields == {"author": "The desk"}


def test_a_bookmark_without_its_number_is_found_on_its_page() -> None:
    content = pdf([["Foreword by nobody in particular.", "1.2 Hotels", "Book early."]],
                  [("Hotels", 0, None)])  # fmt: skip
    assert rows(parsed("a.pdf", content)) == [
        ("page 1", (), "text", "Foreword by nobody in particular."),
        ("page 1", ("1.2 Hotels",), "text", "Book early."),
    ]


def test_short_lines_stay_lines() -> None:
    (found,) = rows(parsed("form.pdf", pdf([["Name:", "Date of birth:", "City"]])))
    assert found[3] == "Name:\nDate of birth:\nCity"


def test_a_hyphen_of_a_compound_stays() -> None:
    (found,) = rows(
        parsed("a.pdf", pdf([["It was agreed on in talks with the Franco-", "German"]]))
    )
    assert found[3] == "It was agreed on in talks with the Franco-German"


def test_meaningless_titles_give_way_to_the_name() -> None:
    assert parsed("plan.pdf", pdf([["Text."]], about={"/Title": "untitled"})).title == "plan"


def test_a_password_is_asked_for_only_where_reading_needs_one() -> None:
    restricted = pdf([["Open to read."]], user_password="", owner_password="x")
    assert rows(parsed("a.pdf", restricted))[0][3] == "Open to read."
    with pytest.raises(InvalidRequest, match="needs a password; save it without one"):
        parsed("a.pdf", pdf([["Secret."]], user_password="x"))


def test_a_scan_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="run OCR"):
        parsed("scan.pdf", pdf([[], []]))


def test_larger_letters_are_headings_where_there_are_no_bookmarks() -> None:
    prose = ["Whoever travels for work keeps every receipt of the journey."] * 8
    content = pdf([[("Travel", 24), *prose, ("Hotels and", 16), ("the like", 16), "Book early."],
                   ["At the rates of the contract.", ("Meals", 16), "By the day."],
                   [("Thank you", 24)]])  # fmt: skip
    found = rows(parsed("a.pdf", content))
    assert [(row[0], row[1]) for row in found] == [
        ("page 1", ("Travel",)),
        ("page 1", ("Travel", "Hotels and the like")),
        ("page 2", ("Travel", "Hotels and the like")),
        ("page 2", ("Travel", "Meals")),
        ("page 3", ()),
    ]
    assert found[-1][3] == "Thank you"


def test_cells_beside_each_other_are_rows_of_a_table() -> None:
    lines: list[str | list[str]] = [
        "Rates of the year.", ["City", "Nights", "Limit"], ["Bonn", "3", "120"],
        ["Koeln", "2", "130"], "All in euros.", ["1.", "Ask first."],
        ["Close by, it is", "one text."], ["Name:", "Bo"], ["City:", "Ulm"],
    ]  # fmt: skip
    document = parsed("a.pdf", pdf([lines]))
    assert [row[2:] for row in rows(document)] == [
        ("text", "Rates of the year."),
        ("table", "City | Nights | Limit\nBonn | 3 | 120\nKoeln | 2 | 130"),
        ("text", "All in euros.\n1. Ask first.\nClose by, it is one text."),
        ("table", "Name: | Bo\nCity: | Ulm"),
    ]
    assert [block.header_rows for block in document.blocks] == [0, 1, 0, 0]


def test_sizes_say_nothing_where_many_lines_are_large() -> None:
    content = pdf([["Small.", "Also small.", "And this one.", ("Large", 20), ("Larger", 22)]])
    assert {row[1] for row in rows(parsed("a.pdf", content))} == {()}


def test_running_heads_are_left_out() -> None:
    texts = ["What one page says.", "What the next says.", "What the last says."]
    pages = [["Handbook", text, f"Page {at} of 3"] for at, text in enumerate(texts, 1)]
    assert [row[3] for row in rows(parsed("a.pdf", pdf(pages)))] == texts
    same = [["Handbook"], ["Handbook"], ["Handbook"]]
    assert [row[3] for row in rows(parsed("a.pdf", pdf(same)))] == ["Handbook"] * 3
