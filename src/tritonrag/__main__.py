"""``python -m tritonrag`` is the ``tritonrag`` command."""

from __future__ import annotations

from tritonrag.cli import main

main()
