"""Tiny artefacts: a tokenizer of words, an embedder that averages them, an LLM's manifest, and a
reranker that adds up what each word is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from tritonrag.artifacts import (
    LLM_DIR,
    RERANKER_DIR,
    EmbedderManifest,
    LlmManifest,
    RerankerManifest,
    embedder_dir,
)
from tritonrag.index import EmbedderId, store
from tritonrag.index.manifest import DocumentRecord
from tritonrag.metadata import Metadata

DIMENSION = 4
MAX_TOKENS = 32
WORDS = (
    "[PAD]", "[UNK]", "how", "many", "days", "of", "leave", "have", "i", "query", "passage", ":",
    "a", "b", "c", "d",
)  # fmt: skip

CHAT = (
    "{% for m in messages %}"
    "{% set turn = loop.index0 %}"
    "{% if turn and (m.role == 'user') != (turn % 2 == 1) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<{{ m.role }}> {{ m.content }} {% endfor %}"
)
"""A chat template that is as strict about roles as Llama's and Gemma's."""


def install(root: Path) -> None:
    """Write an embedder, and the manifest and tokenizer of an LLM, into a model repository."""
    install_embedder(root, 1)
    (root / LLM_DIR).mkdir(parents=True)
    _tokenizer().save(str(root / LLM_DIR / "tokenizer.json"))
    LlmManifest(
        model="tiny-llm", precision="fp32", sha256="0" * 64, context_tokens=200, grounding="quote",
        chat_template=CHAT, special_tokens={}, parity={}, versions={},
    ).save(root / LLM_DIR)  # fmt: skip


WORTH = {"a": 1.0, "b": 2.0, "c": 3.0, "d": float("nan"), "how": -50.0}
"""What a word adds to a pair's logit in the reranker."""


def install_reranker(root: Path, activation: str = "identity") -> None:
    """Write a reranker into a model repository."""
    folder = root / RERANKER_DIR
    folder.mkdir(parents=True)
    _tokenizer().save(str(folder / "tokenizer.json"))
    onnx.save(_adding_graph(), folder / "model.onnx")
    RerankerManifest(
        model="tiny-reranker", precision="fp32", sha256="cd" * 32, max_tokens=MAX_TOKENS,
        activation=activation,
    ).save(folder)  # fmt: skip


def install_embedder(root: Path, version: int) -> None:
    """Write one version of the embedder; each gives other embeddings."""
    folder = root / embedder_dir(version)
    folder.mkdir(parents=True)
    _tokenizer().save(str(folder / "tokenizer.json"))
    onnx.save(_averaging_graph(version - 1), folder / "model.onnx")
    embedder(version).save(folder)


def embedder(version: int = 1) -> EmbedderManifest:
    return EmbedderManifest(
        model="tiny", precision="fp32", sha256=f"a{version + 10:x}" * 32, dimension=DIMENSION,
        max_tokens=MAX_TOKENS, pooling="mean", parity={}, versions={},
        prefixes={"query": "query : ", "passage": "passage : "},
    )  # fmt: skip


def _tokenizer() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _averaging_graph(seed: int) -> onnx.ModelProto:
    """Return ids and mask [batch, length] to the mean of the tokens' vectors [batch, 4]."""
    table = np.random.default_rng(seed).normal(size=(len(WORDS), DIMENSION)).astype(np.float32)
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "middle"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["vectors", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "middle"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["sentence_embedding"]),
    ]
    shape = ["batch", "length"]
    graph = helper.make_graph(
        nodes, "average",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, shape),
        ],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 4])],
        constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _adding_graph() -> onnx.ModelProto:
    """Return ids and mask [batch, length] to the sum of the words' worth [batch]."""
    table = np.array([WORTH.get(word, 0.0) for word in WORDS], dtype=np.float32)
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([1]), "one"),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["worth"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["worth", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["logits"], keepdims=0),
    ]
    shape = ["batch", "length"]
    graph = helper.make_graph(
        nodes, "add",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, shape),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch"])],
        constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_snapshot(
    index_dir: Path,
    collection: str,
    documents: Sequence[tuple[str, Sequence[str]]],
    served: EmbedderManifest | None = None,
    access: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Make live a snapshot of (source, texts); passage i has the i-th unit vector, in a circle.

    `access` gives the access tags of sources.
    """
    lines = [
        json.dumps({"id": f"{source}#{place}", "text": text, "source": source, "title": source,
                    "location": f"{source} > {place}"}, ensure_ascii=False).encode()
        for source, texts in documents
        for place, text in enumerate(texts)
    ]  # fmt: skip
    contents = store.Contents(
        embedder=EmbedderId.of(served or embedder()),
        dimension=DIMENSION,
        recipe="r",
        documents=[
            DocumentRecord(source, source, "0", "r", len(texts),
                           Metadata(access=tuple((access or {}).get(source, ()))))
            for source, texts in documents
        ],
        passages=lines,
        vectors=[np.eye(DIMENSION, dtype=np.float32)[np.arange(len(lines)) % DIMENSION]],
    )  # fmt: skip
    with store.writing(index_dir, collection) as folder:
        store.publish(folder, contents)
