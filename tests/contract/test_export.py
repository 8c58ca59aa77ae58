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

from tritonrag import rollout, versions
from tritonrag.artifacts import (
    EMBEDDER_DIR,
    LLM_DIR,
    EmbedderManifest,
    LlmManifest,
    model_sha256,
    sha256,
)
from tritonrag.graph.chat_template import ChatTemplate

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
onnxruntime = pytest.importorskip("onnxruntime")
genai = pytest.importorskip("onnxruntime_genai")

PROGRAMS = Path(__file__).parents[2] / "export"
# Exporting sets global state of torch that warns of nothing a test could act on.
pytestmark = pytest.mark.filterwarnings("ignore")


def program(name: str) -> ModuleType:
    """Load a program of export/, which finds its neighbours as when it is run."""
    if str(PROGRAMS) not in sys.path:
        sys.path.insert(0, str(PROGRAMS))
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
    assert manifest.parity["min_cosine"] >= embedder.TOLERANCES["int8"].min_cosine
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is None
    assert tokenizer["padding"] is None


def test_embedder_flags_override_the_models_own_settings(with_embedder: Path) -> None:
    manifest = EmbedderManifest.load(with_embedder)
    assert (manifest.model, manifest.max_tokens, manifest.pooling) == ("mine", 32, "mean")
    assert manifest.prefixes == {"query": "", "passage": "passage: "}


def test_an_export_installs_beside_the_live_version(
    bert: Path, with_embedder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = Path(shutil.copytree(with_embedder, tmp_path / "repository"))
    assert export(embedder, bert, repository, "--as-version", "next", precision="int8") == 0
    assert "stays at version 1; `tritonrag models promote embed 2`" in capsys.readouterr().out
    assert versions.installed(repository, versions.EMBED) == [1, 2]
    assert EmbedderManifest.load(repository).precision == "fp32"
    assert EmbedderManifest.load(repository, 2).precision == "int8"
    rollout.set_live(repository, versions.EMBED, versions.Live(2, 1))
    assert export(embedder, bert, repository, "--name", "again") == 0  # replaces the live one
    assert EmbedderManifest.load(repository, 2).model == "again"
    assert EmbedderManifest.load(repository, 1).model == "mine"


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_a_version_is_a_number(
    bert: Path, tmp_path: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(embedder, bert, tmp_path, f"--as-version={number}") == 1
    assert f"--as-version: is '{number}', expected a number from 1 on" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


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
    def other_pooling(_model: Any, folder: Path, *_: Any) -> None:
        folder.mkdir()
        shutil.copy(with_embedder / EMBEDDER_DIR / "model.onnx", folder)

    monkeypatch.setattr(embedder, "write_onnx", other_pooling)
    assert export(embedder, bert, tmp_path) == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert "nothing was written" in capsys.readouterr().err

    assert export(embedder, bert, tmp_path, "--force") == 0
    assert EmbedderManifest.load(tmp_path).forced
    assert "installed because of --force" in capsys.readouterr().err


def test_embedder_manifest_says_what_it_was_made_from(bert: Path, with_embedder: Path) -> None:
    manifest = EmbedderManifest.load(with_embedder)
    folder = with_embedder / EMBEDDER_DIR
    assert manifest.files == {
        name: sha256(folder / name) for name in ("model.onnx", "tokenizer.json")
    }
    assert manifest.source_files["model.safetensors"] == sha256(bert / "model.safetensors")
    assert manifest.parity["recall_agreement"] == 1
    assert all(milliseconds > 0 for milliseconds in manifest.speed.values())
    assert (manifest.revision, manifest.forced, manifest.normalize) == ("", False, True)


@pytest.mark.parametrize(
    ("flags", "precision", "operators"),
    [
        (("--fused",), "fp32", {"MultiHeadAttention"}),
        (("--quantization", "blocks"), "int8", {"MatMulNBits"}),
        (("--quantization", "static", "--calibration"), "int8", {"QuantizeLinear"}),
        ((), "fp16", set()),
    ],
)
def test_embedder_variants(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...], precision: str, operators: set[str],
) -> None:  # fmt: skip
    import onnx

    if "--calibration" in flags:
        (tmp_path / "texts").write_text("\n".join(embedder.SAMPLES), encoding="utf-8")
        flags = (*flags, str(tmp_path / "texts"))
    monkeypatch.setattr(embedder, "WORTH_FUSING", 0.0)  # a tiny model gains nothing
    # What an untrained model retrieves hangs on the last digits.
    monkeypatch.setitem(embedder.TOLERANCES, "int8", embedder.Tolerance(0.99, 0.8))
    assert export(embedder, bert, tmp_path, *flags, precision=precision) == 0
    graph = onnx.load(tmp_path / EMBEDDER_DIR / "model.onnx").graph
    assert operators <= {node.op_type for node in graph.node}
    assert [each.type.tensor_type.elem_type for each in graph.output] == [onnx.TensorProto.FLOAT]
    if precision == "fp16":
        kinds = {each.data_type for each in graph.initializer if each.dims}
        assert onnx.TensorProto.FLOAT16 in kinds


def test_an_embedder_that_is_not_faster_fused_stays_plain(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedder, "WORTH_FUSING", 100.0)
    assert export(embedder, bert, tmp_path, "--fused") == 0
    assert EmbedderManifest.load(tmp_path).options["fused"] is False


ENCODERS = {
    "mean": lambda sizes: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**sizes)),
    "last": lambda sizes: transformers.Qwen3Model(
        transformers.Qwen3Config(num_key_value_heads=2, head_dim=16, **sizes)
    ),
}


@pytest.mark.parametrize("pooling", ENCODERS)
def test_poolings(pooling: str, tmp_path: Path) -> None:
    """Encoders of two other families, with what sentence-transformers says of them."""
    source = tmp_path / "encoder"
    size = train_tokenizer(embedder.SAMPLES, source, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 130, "initializer_range": 0.2,
        "pad_token_id": 0,
    }  # fmt: skip
    ENCODERS[pooling](sizes).save_pretrained(source)
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    write_json(source / "modules.json", modules)
    key = {"mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken"}[pooling]
    write_json(source / "1_Pooling" / "config.json", {key: True})
    settings = {"prompts": {"query": "ask: "}, "similarity_fn_name": "dot"}
    write_json(source / "config_sentence_transformers.json", settings)

    assert export(embedder, source, tmp_path) == 0
    manifest = EmbedderManifest.load(tmp_path)
    assert (manifest.pooling, manifest.normalize) == (pooling, False)
    assert manifest.prefixes == {"query": "ask: ", "passage": ""}
    assert manifest.max_tokens == 128


def test_prefixes_of_known_families_are_used_where_the_files_name_none() -> None:
    assert embedder.known_prefixes("intfloat/e5-base-v2") == {
        "query": "query: ", "passage": "passage: ",
    }  # fmt: skip
    assert embedder.known_prefixes("BAAI/bge-m3") is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--calibration", "/absent"), "is for --precision int8 --quantization static"),
        (("--precision", "int8", "--quantization", "static"), "needs a file of text"),
        (("--max-tokens", "4000"), "this model takes 16 to 128"),
        (("--retrieval", "/absent"), "expected JSON Lines"),
    ],
)
def test_flags_that_do_not_fit_are_one_clear_line(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    arguments = ["--model", str(bert), "--repository", str(tmp_path), *flags]
    assert embedder.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_dry_run_writes_nothing(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(embedder, bert, tmp_path / "repository", "--dry-run", precision="int8") == 0
    said = capsys.readouterr().out
    assert "downloads  nothing" in said
    assert "weights" in said
    assert not (tmp_path / "repository").exists()


def test_llm(with_llm: Path) -> None:
    folder = with_llm / LLM_DIR
    manifest = LlmManifest.load(with_llm)
    assert (manifest.model, manifest.precision) == ("tiny-llama", "int4")
    assert (manifest.context_tokens, manifest.grounding) == (512, "quote")
    assert manifest.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert manifest.sha256 == model_sha256(folder)
    render = ChatTemplate(manifest.chat_template, **manifest.special_tokens)
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
    builder.write_text(
        f"""#!/bin/sh
case "$*" in *genai_builder*) echo no such layer; exit 3;; *) exec {sys.executable} "$@";; esac
"""
    )
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
    assert "a causal model, which embeds by its last token" in capsys.readouterr().err
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


@pytest.mark.parametrize("name", ["embedder", "llm"])
def test_a_default_model_that_is_another_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is named is taken as it is."""
    exporter = {"embedder": embedder, "llm": llm}[name]
    original = embedder.wheel_folder() if name == "embedder" else llm.DEMO_MODEL
    changed = shutil.copytree(original, tmp_path / "model")
    with (changed / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"x")
    monkeypatch.setattr(embedder, "wheel_folder", lambda: changed)
    monkeypatch.setattr(llm, "DEMO_MODEL", changed)
    options = ["--dry-run", "--repository", str(tmp_path / "repository")]

    assert exporter.main(options) == 1
    said = capsys.readouterr().err
    assert "model.safetensors: its SHA-256 is " in said
    assert "install it again, or export it as one of your own with --model" in said
    assert exporter.main([*options, "--model", str(changed)]) == 0


@pytest.mark.parametrize("name", ["embedder", "llm"])
def test_the_default_models_are_as_they_were_released(name: str, tmp_path: Path) -> None:
    options = ["--dry-run", "--repository", str(tmp_path / "repository")]
    assert {"embedder": embedder, "llm": llm}[name].main(options) == 0
