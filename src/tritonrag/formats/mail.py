"""E-mail (EML): who wrote to whom, when and what. Attachments are named, and not opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.decoding import decoded, decoded_html
from tritonrag.formats.html import parse_html
from tritonrag.formats.outline import Outline
from tritonrag.formats.plain import parse_text
from tritonrag.formats.properties import facts, telling

_SHOWN = ("From", "To", "Cc", "Date")


@dataclass(frozen=True)
class Mail:
    """A message of any mail format; ``headers`` are shown in their order where not empty."""

    subject: str
    headers: Mapping[str, str]
    sent: datetime | None
    body: Outline | None
    attachments: Iterable[str]

    def outline(self) -> Outline:
        """Return the message as a document with the subject as its title."""
        builder = ExtractedBlocks()
        builder.heading(0, self.subject)
        title = telling(self.subject)
        headers = (f"{name}: {value}" for name, value in self.headers.items() if value)
        builder.add("\n".join(headers))
        if self.body:
            builder.include(self.body, titled=False)
        builder.go_to("")
        names = ", ".join(filter(None, self.attachments))
        if names:
            builder.add(f"Attachments, not indexed: {names}")
        return builder.outline(title, facts(self.headers.get("From"), self.sent))


def parse(content: bytes) -> Outline:
    """Parse an e-mail."""
    message = message_from_bytes(content, policy=default)
    date = message["Date"]
    return Mail(
        str(message["Subject"] or ""),
        {name: str(message[name] or "") for name in _SHOWN},
        date.datetime if date else None,
        _body(message),
        [str(part.get_filename() or "") for part in message.iter_attachments()],
    ).outline()


def _body(message: EmailMessage) -> Outline | None:
    """Return the message's text, the plain one where it has both."""
    part = message.get_body(("plain", "html"))
    if part is None:
        return None
    content, charset = part.get_payload(decode=True), part.get_content_charset()
    assert isinstance(content, bytes)
    if part.get_content_subtype() == "html":
        return parse_html(decoded(content, charset) if charset else decoded_html(content))
    return parse_text(decoded(content, charset))
