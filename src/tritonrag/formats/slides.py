"""PowerPoint presentations (PPTX), slide by slide, with tables, charts and speaker notes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

import pptx
from pptx.enum.shapes import PP_PLACEHOLDER

from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.outline import Outline
from tritonrag.formats.properties import facts, telling

_LISTS = (PP_PLACEHOLDER.BODY, PP_PLACEHOLDER.OBJECT)
_PAGE_FURNITURE = (PP_PLACEHOLDER.SLIDE_NUMBER, PP_PLACEHOLDER.DATE, PP_PLACEHOLDER.FOOTER)


def parse(content: bytes) -> Outline:
    """Parse a presentation; pictures are left out, and nothing that is linked is opened."""
    deck = pptx.Presentation(io.BytesIO(content))
    builder = ExtractedBlocks()
    for number, slide in enumerate(deck.slides, 1):
        builder.go_to(f"slide {number}")
        _add_slide(builder, slide)
    about = deck.core_properties
    title = telling(about.title)
    return builder.outline(title, facts(about.author, about.created, about.modified))


def _add_slide(builder: ExtractedBlocks, slide: Any) -> None:
    title = slide.shapes.title
    if title is not None:
        builder.heading(1, title.text_frame.text)
    for shape in _in_reading_order(slide.shapes):
        if title is None or shape.shape_id != title.shape_id:
            _add_shape(builder, shape)
    if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None:
        builder.add(notes.text)


def _in_reading_order(shapes: Iterable[Any]) -> Iterator[Any]:
    """Yield shapes from top to bottom, those of a group together."""
    for shape in sorted(shapes, key=lambda shape: (shape.top or 0, shape.left or 0)):
        if hasattr(shape, "shapes"):
            yield from _in_reading_order(shape.shapes)
        else:
            yield shape


def _add_shape(builder: ExtractedBlocks, shape: Any) -> None:
    kind = shape.placeholder_format.type if shape.is_placeholder else None
    if kind in _PAGE_FURNITURE:
        return
    if shape.has_text_frame:
        _add_paragraphs(builder, shape.text_frame.paragraphs, listed=kind in _LISTS)
    elif shape.has_table:
        builder.add_table([cell.text for cell in row.cells] for row in shape.table.rows)
    elif shape.has_chart:
        _add_chart(builder, shape.chart)


def _add_paragraphs(builder: ExtractedBlocks, paragraphs: Iterable[Any], *, listed: bool) -> None:
    written = [each for each in paragraphs if each.text.strip()]
    for paragraph in written:
        text = paragraph.text.replace("\v", "\n")
        if listed and len(written) > 1:
            builder.add(text, "item", "  " * paragraph.level + "- ")
        else:
            builder.add(text)


def _add_chart(builder: ExtractedBlocks, chart: Any) -> None:
    """Add a chart's title and, as a table, what it plots."""
    if chart.has_title and chart.chart_title.has_text_frame:
        builder.add(chart.chart_title.text_frame.text)
    for plot in chart.plots:
        series = list(plot.series)
        names = ["", *(one.name for one in series)]
        columns = [[_number(value) for value in one.values] for one in series]
        labels = [str(label) for label in plot.categories]
        builder.add_table([names, *([*row] for row in zip(labels, *columns, strict=False))])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.15g}"
