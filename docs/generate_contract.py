"""Writes docs/contract.md from ``tritonrag.contract``: ``python docs/generate_contract.py``.

A test fails while the page differs from what this program would write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tritonrag import contract
from tritonrag.contract import MODELS, VARIANTS, ModelSpec, TensorSpec
from tritonrag.errors import TritonragError

PAGE = Path(__file__).with_name("contract.md")

HEAD = """\
# The contract

<!-- Written by docs/generate_contract.py from src/tritonrag/contract.py: change that file. -->

Every served model with its tensors and limits. Shapes are per request, without the batch dimension;
-1 varies. The `config.pbtxt` of each model is held to this by a test.
"""

LIMITS = (
    ("question", f"1 to {contract.MAX_QUESTION_BYTES} bytes of UTF-8, not blank"),
    ("text with role `passage`", f"1 to {contract.MAX_TEXT_BYTES} bytes of UTF-8, not blank"),
    ("history", f"{contract.MAX_HISTORY_BYTES} bytes of JSON"),
    (
        "passages",
        f"{contract.MAX_TOP_K} for a question, of {contract.MAX_PASSAGE_BYTES} bytes of JSON each "
        f"and {contract.MAX_PASSAGES_BYTES} together",
    ),
    ("citations", f"{contract.MAX_TOP_K}, {contract.MAX_CITATIONS_BYTES} bytes of JSON"),
    (
        "citations with grounding `quote`",
        f"{contract.MAX_QUOTED_BYTES} bytes of text, {contract.MAX_QUOTED_SENTENCES} sentences",
    ),
    ("input_ids", "0 to the embedder's vocabulary, as many as its longest input, as the mask"),
    ("prompt", f"{contract.MAX_PROMPT_BYTES} bytes of UTF-8, and the LLM's context"),
    ("top_k", f"{contract.MIN_TOP_K} to {contract.MAX_TOP_K}"),
    ("retrieve_k", f"`top_k` to {contract.MAX_TOP_K}"),
    ("mode", ", ".join(f"`{mode}`" for mode in contract.MODES)),
    ("min_score", "-1 to 1"),
    ("diversity", "0 to 1"),
    ("max_tokens", "1 to the LLM's context and the operator's cap"),
    ("temperature", f"0 to {contract.MAX_TEMPERATURE:g}"),
    ("stop", f"{contract.MAX_STOP_STRINGS} strings of 1 to {contract.MAX_STOP_BYTES} bytes"),
    (
        "filter",
        f"{contract.MAX_FILTER_BYTES} bytes of JSON, {contract.MAX_FILTER_CONDITIONS} conditions, "
        f"{contract.MAX_FILTER_VALUES} values in each, {contract.MAX_FILTER_DEPTH} levels",
    ),
    (
        "groups",
        f"{contract.MAX_GROUPS} of 1 to {contract.MAX_GROUP_CHARS} characters, "
        f"{contract.MAX_GROUPS_BYTES} bytes of JSON",
    ),
    ("cancel_key", f"{contract.MIN_KEY_BYTES} to {contract.MAX_KEY_BYTES} bytes of UTF-8"),
    ("caller", f"{contract.MAX_CALLER_BYTES} bytes of UTF-8"),
    ("collection", f"`{contract.COLLECTION_PATTERN}`"),
    ("batch of a stateless model", str(contract.MAX_BATCH_SIZE)),
)


def page() -> str:
    """Return the whole page."""
    parts = [
        HEAD,
        *(_model(spec, spec.variant) for spec in MODELS.values()),
        *_variants(),
        _limits(),
        _errors(),
    ]
    return "\n".join(parts)


def _model(spec: ModelSpec, variant: str = "") -> str:
    kind = f"{spec.backend}{', decoupled' if spec.decoupled else ''}"
    steps = f" Steps: {', '.join(f'`{step}`' for step in spec.steps)}." if spec.steps else ""
    table = _table(
        ("", "tensor", "type", "shape", ""),
        [*_rows("in", spec.inputs), *_rows("out", spec.outputs)],
    )
    batch = f"Largest batch: {spec.max_batch_size}."
    of_variant = f" of `--model-config-name={variant}`" if variant else ""
    return f"## `{spec.name}`{of_variant} ({kind})\n\n{spec.doc}{steps} {batch}\n\n{table}"


def _variants() -> Iterator[str]:
    for variant, specs in VARIANTS.items():
        yield from (_model(spec, variant) for spec in specs.values())


def _rows(direction: str, specs: tuple[TensorSpec, ...]) -> Iterator[tuple[str, ...]]:
    for spec in specs:
        label = f"{direction}, optional" if spec.optional else direction
        yield label, f"`{spec.name}`", spec.dtype, str(list(spec.dims)), spec.doc


def _limits() -> str:
    rows = [(f"`{name}`" if name.islower() and " " not in name else name, limit) for name, limit
            in LIMITS]  # fmt: skip
    return f"## Limits\n\n{_table(('what', 'limit'), rows)}"


def _errors() -> str:
    rows = [
        (f"`{kind.code}`", f"`{kind.__name__}`", (kind.__doc__ or "").splitlines()[0])
        for kind in _raised(TritonragError)
    ]
    return f"## Errors\n\n{_table(('code', 'in Python', ''), rows)}"


def _raised(kind: type[TritonragError]) -> Iterator[type[TritonragError]]:
    """Yield the classes of the tree that are raised: those with a code of their own, and leaves."""
    below = [each for each in kind.__subclasses__() if each.__module__ == kind.__module__]
    if not below or ("code" in vars(kind) and kind is not TritonragError):
        yield kind
    for each in below:
        yield from _raised(each)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
