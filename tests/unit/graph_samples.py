"""A model repository of the graph's shape, without models."""

from __future__ import annotations

from pathlib import Path

from tritonrag.rollout import add_version
from tritonrag.versions import EMBED, GENERATE, Kind

STEP = '{{ model_name: "{0}"\n model_version: -1 }}'
ENSEMBLE = 'name: "{0}"\nplatform: "ensemble"\nensemble_scheduling {{ step [ {1} ] }}\n'


def install(repository: Path, kind: Kind, version: int) -> None:
    """Install a version with a manifest that says nothing."""
    folder = repository / kind.folder(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}")
    add_version(repository, kind, version)


def make_repository(root: Path) -> Path:
    """Write configs and empty adapters, and install version 1 of an embedder and an LLM."""
    for model in (*EMBED.models, *GENERATE.models):
        folder = root / model / "1"
        folder.mkdir(parents=True)
        (folder.parent / "config.pbtxt").write_text(f'name: "{model}"\n')
        if model != "embed":
            (folder / "model.py").write_text("")
    for ensemble, steps in {"search": EMBED.models, "rag": EMBED.models + GENERATE.models}.items():
        (root / ensemble).mkdir()
        text = ENSEMBLE.format(ensemble, ", ".join(map(STEP.format, steps)))
        (root / ensemble / "config.pbtxt").write_text(text)
    install(root, EMBED, 1)
    install(root, GENERATE, 1)
    return root
