"""What a user names as a source, and what listing one gives."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from tritonrag.documents import Failure, SourceFile
from tritonrag.errors import InvalidRequest, NotFound

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PASSWORD = re.compile(r"\w+://[^/]*:[^/]*@")


@dataclass(frozen=True)
class Source:
    """A folder, a file or a URL; ``name`` goes before the names of its documents."""

    place: str
    name: str = ""

    @classmethod
    def parse(cls, text: str | Path) -> Source:
        """Read ``PLACE`` or ``NAME=PLACE``; a file that is called so is a place.

        Raises:
            InvalidRequest: a URL with a password in it, which would be shown and kept.
        """
        place = str(text)
        name, equals, rest = place.partition("=")
        if equals and rest and _NAME.fullmatch(name) and not os.path.lexists(place):
            place = os.path.expanduser(rest)  # Not every shell does that after an equals sign.
        else:
            name = ""
        if _PASSWORD.match(place):
            raise InvalidRequest(
                f"{place.partition('://')[0]}://…: a source's URL holds no password; put it where "
                "the store's own tools look for it (for S3: AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)"
            )
        return cls(place, name)

    @property
    def remote(self) -> bool:
        """Whether it is not of this machine."""
        return "://" in self.place

    def check_there(self) -> None:
        """Fail at once where it is misspelt, before anything is tried again and again.

        Raises:
            NotFound: it is a path of this machine, and nothing is there.
        """
        if not self.remote and not os.path.lexists(self.place):
            raise NotFound(f"{self.place}: no such file or folder; nothing was changed")

    @property
    def root(self) -> str:
        """Its URL or absolute path, without a slash at the end."""
        return self.place.rstrip("/") if self.remote else os.path.abspath(self.place)

    def document(self, key: str) -> str:
        """Return the name of the document at ``key`` below the source."""
        return f"{self.name}/{key}" if self.name else key


@dataclass
class Listing:
    """What lies below a source: files of known kinds and sidecars, ``source`` being their key.

    ``keys`` are all there is, of whatever kind. ``unlisted`` are folders of unknown content.
    """

    files: list[SourceFile] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)
    unlisted: list[Failure] = field(default_factory=list)
