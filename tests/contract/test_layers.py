"""Who may import whom, read from the imports; the layers are drawn in docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src/tritonrag"

LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"contract", "errors", "redaction"}),
    frozenset(
        {
            "confinement",
            "limits",
            "metadata",
            "scheduling",
            "settings",
            "versions",
        }
    ),
    frozenset({"graph"}),
    frozenset({"artifacts", "formats", "llm_config", "monitoring", "overlap", "quoting"}),
    frozenset(
        {
            "documents",
            "evaluation",
            "fusion",
            "generation",
            "padding",
            "prompting",
            "rollout",
            "sources",
            "tokenizing",
            "units",
        }
    ),
    frozenset({"chunking", "corpus", "exporting", "reranking"}),
    frozenset({"parsing"}),
    frozenset({"index", "engines"}),
    frozenset({"backend", "client", "distributed", "repository"}),
    frozenset({"server"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
"""Lowest first. A part imports only parts of lower layers, or itself."""

APART = {("client", "index"), ("client", "engines"), ("repository", "engines")}
"""Lower layers that a part does without: a client's machine has no ``serve`` extra."""

ONLY = {
    "triton_python_backend_utils": {"backend"},
    "tritonclient": {"client", "repository"},
    "onnxruntime": {"backend"},
    "openvino": {"backend"},
    "onnxruntime_genai": {"engines"},
    "openai": {"engines"},
    "httpx2": {"engines"},
    "faiss": {"index"},
    "bm25s": {"index"},
    "pytrec_eval": {"evaluation"},
    "typer": {"cli"},
    "psutil": {"server"},
    "bs4": {"formats"},
    "docutils": {"formats"},
    "docx": {"formats"},
    "markdown_it": {"formats"},
    "openpyxl": {"formats"},
    "pptx": {"formats"},
    "pymilvus": {"index"},
    "pypdf": {"formats"},
    "fsspec": {"corpus"},
    "ray": {"distributed"},
    "cronsim": {"scheduling"},
    "tenacity": {"scheduling"},
    "prometheus_client": {"monitoring", "server"},
    "xlrd": {"formats"},
}
"""Libraries that one part hides from the rest."""

NEVER = {"torch", "transformers", "onnx", "sentence_transformers", "optimum"}
"""Serving needs none of these; they belong to the programs in export/."""


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    own_backends = PACKAGE / "server" / "backends"
    return [
        path for path in sorted(PACKAGE.rglob("*.py"))
        if own_backends not in path.parents and path != PACKAGE / "__init__.py"
    ]  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """Yield every imported module, those inside functions and type checks included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: imports are absolute"
            if node.module == "tritonrag":
                yield from (f"tritonrag.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def layer(name: str) -> int:
    found = [number for number, names in enumerate(LAYERS) if name in names]
    assert found, f"{name} is in no layer: add it to LAYERS and to docs/architecture.md"
    return found[0]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_lower_layers_only(path: Path) -> None:
    own = part(path)
    for name in imports(path):
        if name.startswith("tritonrag."):
            other = name.split(".")[1]
            assert other == own or layer(other) < layer(own), f"{own} imports {other}"
            assert (own, other) not in APART, f"{own} imports {other}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_library_stays_behind_its_part(path: Path) -> None:
    for name in imports(path):
        library = name.split(".")[0]
        assert library not in NEVER, f"{name} is for export/ only"
        assert part(path) in ONLY.get(library, {part(path)}), (
            f"{library} belongs to {ONLY[library]}"
        )


def test_our_python_based_backend_is_an_adapter_too() -> None:
    for path in (PACKAGE / "server" / "backends").glob("*/model.py"):
        ours = {name for name in imports(path) if name.startswith("tritonrag")}
        assert {name.split(".")[1] for name in ours} == {"backend"}


def test_contract_and_errors_import_nothing_of_the_package() -> None:
    for name in LAYERS[0]:
        assert not [each for each in imports(PACKAGE / f"{name}.py") if "tritonrag" in each]
