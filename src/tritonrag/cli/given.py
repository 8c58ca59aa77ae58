"""Options that say something of all the documents that a command indexes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tritonrag.errors import InvalidRequest

Tags = Annotated[
    list[str] | None, typer.Option("--tag", help="Tag of all the documents; may be repeated.")
]
Access = Annotated[
    list[str] | None,
    typer.Option(
        "--access",
        help="Group that may read them, of those whose sidecar names none; may be repeated.",
    ),
]
Created = Annotated[
    str | None, typer.Option(help="When they were written, as 2026-03-31.", show_default=False)
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--field", metavar="NAME=VALUE", help="Another field of theirs; may be repeated."),
]


def metadata(
    tags: list[str] | None,
    access: list[str] | None,
    created: str | None,
    fields: list[str] | None,
) -> dict[str, Any]:
    """Return what the options say, as a sidecar file would; values are read as YAML.

    Raises:
        InvalidRequest: a field is not of the form ``NAME=VALUE``.
    """
    given: dict[str, Any] = dict(map(_field, fields or []))
    given |= {"tags": tags} if tags else {}
    given |= {"access": access} if access else {}
    return given | ({"created": created} if created else {})


def _field(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals or name in ("tags", "access", "created"):
        raise InvalidRequest(f"--field: {text!r} is not NAME=VALUE with the name of another field")
    try:
        return name, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return name, value
