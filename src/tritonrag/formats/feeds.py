"""RSS and Atom feeds; entities are refused, and no link is followed."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from defusedxml.ElementTree import fromstring

from tritonrag.errors import InvalidRequest
from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.html import parse_html
from tritonrag.formats.outline import Outline
from tritonrag.formats.properties import telling

_ENTRIES = ("item", "entry")
_DATES = ("pubDate", "published", "updated", "date")
_BODIES = ("encoded", "content", "description", "summary")
"""Where the text of an entry stands, the fullest first."""


def parse(content: bytes) -> Outline:
    """Parse a feed, whose entries become headings.

    Raises:
        InvalidRequest: it is XML of another kind.
    """
    root = fromstring(content)
    if _name(root) not in ("rss", "RDF", "feed"):
        raise InvalidRequest(
            f"XML with the root <{_name(root)}>; of XML only RSS and Atom feeds are read"
        )
    builder = ExtractedBlocks()
    channel = next((each for each in root if _name(each) == "channel"), root)
    builder.add(_first(channel, ("description", "subtitle")))
    for entry in root.iter():
        if _name(entry) in _ENTRIES:
            _add_entry(builder, entry)
    return builder.outline(telling(_first(channel, ("title",))))


def _add_entry(builder: ExtractedBlocks, entry: Element) -> None:
    builder.go_to("")
    builder.heading(1, _first(entry, ("title",)))
    builder.add(_first(entry, _DATES))
    body = parse_html(_first(entry, _BODIES))
    builder.include(body, level=2)


def _first(parent: Element, names: tuple[str, ...]) -> str:
    """Return the text of the first child that has any, ``names`` in their order."""
    found = (_text(child) for name in names for child in parent if _name(child) == name)
    return next(filter(None, found), "")


def _text(element: Element) -> str:
    return "".join(element.itertext()).strip()


def _name(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]
