"""The export programs on tiny models made here: what they write is what the server reads."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tritonrag import prompting
from tritonrag.artifacts import EMBEDDER_DIR, LLM_DIR, EmbedderManifest, LlmManifest, model_sha256

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
onnxruntime = pytest.importorskip("onnxruntime")
genai = pytest.importorskip("onnxruntime_genai")

PROGRAMS = Path(__file__).parents[2] / "export"
# Exporting sets global state of torch that warns of nothing a test could act on.
pytestmark = pytest.mark.filterwarnings("ignore")


def program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"export_{name}", PROGRAMS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(PROGRAMS))  # as it is where one of them runs
embedder, llm = program("embedder"), program("llm")
llm_parity = sys.modules["llm_parity"]


def train_tokenizer(texts: tuple[str, ...], folder: Path, **special: str) -> int:
    """Save a byte-level BPE tokenizer trained on a few texts; return its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    # Both must be gone from the exported file: the server sets them.
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(folder)
    return len(fast)


def save_llama(folder: Path, seed: int, size: int | None = None) -> None:
    size = size or json.loads((folder / "config.json").read_text())["vocab_size"]
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tritonrag_grounding="quote",
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    size = train_tokenizer(embedder.SAMPLES, folder, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 48})
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    write_json(folder / "config_sentence_transformers.json", prompts)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    size = train_tokenizer(llm_parity.TEXTS + llm_parity.PROMPTS, folder, **special)
    save_llama(folder, seed=0, size=size)
    return folder


@pytest.fixture
def copy(tmp_path: Path, llama: Path) -> Path:
    """A copy of the tiny Llama for a test to spoil."""
    return Path(shutil.copytree(llama, tmp_path / "spoilt"))


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))


def edit_json(path: Path, **values: Any) -> None:
    write_json(path, json.loads(path.read_text()) | values)


def export(
    module: ModuleType, model: Path | str, repository: Path, *flags: str, precision: str = "fp32"
) -> int:
    arguments = ["--model", str(model), "--precision", precision, "--repository", str(repository)]
    return int(module.main([*arguments, *flags]))


@pytest.fixture(scope="module")
def with_embedder(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the tiny BERT, exported against its own settings."""
    repository = tmp_path_factory.mktemp("repository")
    flags = ("--pooling", "mean", "--max-tokens", "32", "--query-prefix", "", "--name", "mine")
    assert export(embedder, bert, repository, *flags) == 0
    return repository


@pytest.fixture(scope="module")
def with_llm(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the tiny Llama."""
    repository = tmp_path_factory.mktemp("repository")
    assert export(llm, llama, repository, precision="int4") == 0
    return repository


def test_embedder(bert: Path, tmp_path: Path) -> None:
    assert export(embedder, bert, tmp_path, precision="int8") == 0
    folder = tmp_path / EMBEDDER_DIR
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "model.onnx",
        "tokenizer.json",
    ]
    manifest = EmbedderManifest.load(tmp_path)
    assert (manifest.model, manifest.precision) == ("tiny-bert", "int8")
    assert (manifest.dimension, manifest.max_tokens, manifest.pooling) == (32, 48, "cls")
    assert manifest.prefixes == {"query": "query: ", "passage": "passage: "}
    assert manifest.sha256 == model_sha256(folder)
    assert manifest.parity["min_cosine"] >= embedder.MIN_COSINE["int8"]
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is None
    assert tokenizer["padding"] is None


def test_embedder_flags_override_the_models_own_settings(with_embedder: Path) -> None:
    manifest = EmbedderManifest.load(with_embedder)
    assert (manifest.model, manifest.max_tokens, manifest.pooling) == ("mine", 32, "mean")
    assert manifest.prefixes == {"query": "", "passage": "passage: "}


def test_embedder_graph_is_what_the_contract_says(with_embedder: Path) -> None:
    session = onnxruntime.InferenceSession(with_embedder / EMBEDDER_DIR / "model.onnx")
    tensors = [(put.name, put.type) for put in (*session.get_inputs(), *session.get_outputs())]
    assert tensors == [
        ("input_ids", "tensor(int64)"),
        ("attention_mask", "tensor(int64)"),
        ("sentence_embedding", "tensor(float)"),
    ]
    for batch, sequence in ((1, 8), (3, 128)):
        ids = np.ones((batch, sequence), dtype=np.int64)
        (found,) = session.run(None, {"input_ids": ids, "attention_mask": ids})
        assert found.shape == (batch, 32)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_embedder_too_far_from_the_original_is_not_installed(
    bert: Path,
    with_embedder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def other_pooling(_model: Any, _precision: str, folder: Path) -> None:
        shutil.copy(with_embedder / EMBEDDER_DIR / "model.onnx", folder)

    monkeypatch.setattr(embedder, "write_onnx", other_pooling)
    assert export(embedder, bert, tmp_path, precision="int8") == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert "nothing was written" in capsys.readouterr().err


def test_llm(with_llm: Path) -> None:
    folder = with_llm / LLM_DIR
    manifest = LlmManifest.load(with_llm)
    assert (manifest.model, manifest.precision) == ("tiny-llama", "int4")
    assert (manifest.context_tokens, manifest.grounding) == (512, "quote")
    assert manifest.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert manifest.sha256 == model_sha256(folder)
    render = prompting.chat_template(manifest.chat_template, **manifest.special_tokens)
    assert render([{"role": "user", "content": "Hi"}]) == "<s>User: Hi\n\nAssistant:"
    tokenizer = genai.Tokenizer(genai.Model(str(folder)))
    assert tokenizer.decode(tokenizer.encode("The river rose.")) == "The river rose."


def test_llm_too_far_from_the_original_leaves_the_old_one(
    copy: Path,
    with_llm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def other_weights(_source: Path, folder: Path, _recipe: Any) -> None:
        shutil.copytree(with_llm / LLM_DIR, folder, dirs_exist_ok=True)

    save_llama(copy, seed=1)
    old = tmp_path / LLM_DIR / "manifest.json"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    monkeypatch.setattr(llm, "build", other_weights)
    assert export(llm, copy, tmp_path, precision="int4") == 1
    assert [path.name for path in old.parent.parent.iterdir()] == ["llm"]
    assert old.read_text() == "old"
    assert "too far from the original" in capsys.readouterr().err


def test_a_failed_build_shows_what_the_builder_said(
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    builder = tmp_path / "python"
    builder.write_text("#!/bin/sh\necho no such layer; exit 3\n")
    builder.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(builder))
    assert export(llm, llama, tmp_path / "repository") == 1
    error = capsys.readouterr().err
    assert "no such layer" in error
    assert "builder failed (3)" in error


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (
            lambda folder: edit_json(folder / "config.json", architectures=["GPT2LMHeadModel"]),
            "architecture is GPT2LMHeadModel",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:5000]
            ),
            "cannot be loaded",
        ),
        (
            lambda folder: edit_json(folder / "config.json", num_hidden_layers=3),
            "weights lack",
        ),
        (
            lambda folder: train_tokenizer(("x",), folder, pad_token="<pad>"),
            "the tokenizer has",
        ),
        (
            lambda folder: edit_json(folder / "config.json", tritonrag_pointers=4),
            "tritonrag_pointers 4, but its tokenizer has no special token",
        ),
    ],
)  # fmt: skip
def test_a_spoilt_llm_is_one_clear_line(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    spoil(copy)
    assert export(llm, copy, tmp_path / "repository") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "repository").exists()


def test_an_encoder_of_another_kind_is_refused(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(embedder, llama, tmp_path / "repository") == 1
    assert "'llama' is not a BERT-type encoder" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_a_module_that_the_graph_would_lack_is_refused(bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bert, tmp_path / "dense"))
    modules = [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]
    write_json(folder / "modules.json", modules)
    assert export(embedder, folder, tmp_path / "repository") == 1


def test_a_hub_that_cannot_be_reached_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    assert export(embedder, "someone/some-model", tmp_path / "repository") == 1
    error = capsys.readouterr().err
    assert "give the path of a local folder" in error
    assert error.count("\n") == 1
