"""export/reranker.py on tiny cross-encoders made here: scores and order are transformers' own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_export import edit_json, program
from tiny_rerankers import POSITIONS, original_logits, save_tiny_reranker, train_tokenizer

from tritonrag.artifacts import RERANKER_DIR, RerankerManifest, model_sha256
from tritonrag.reranking import BatchLimits, PairTokenizer, Reranker, activated

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
onnxruntime = pytest.importorskip("onnxruntime")

# Exporting sets global state of torch that warns of nothing a test could act on.
pytestmark = pytest.mark.filterwarnings("ignore")

reranker = program("reranker")
PAIRS = [
    ("How many days?", "Full-time employees receive 28 days of annual leave."),
    ("¿Cuántos días?", "naïve café – 20 °C, 東京 2024 🙂"),
    ("days", "x"),
    ("How many days are there? " * 9, "Bread needs little: flour, water, salt and time. " * 9),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT and a tiny XLM-RoBERTa."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("bert", "xlm-roberta"):
        save_tiny_reranker(folder / kind, kind, reranker.PASSAGES)
    return folder


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BERT for a test to spoil."""
    return Path(shutil.copytree(models / "bert", tmp_path / "spoilt"))


def export(model: Path | str, repository: Path, *flags: str) -> int:
    return int(reranker.main(["--model", str(model), "--repository", str(repository), *flags]))


def installed(repository: Path) -> Path:
    return repository / RERANKER_DIR


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("bert", "fp32"),
        ("bert", "int8"),
        ("bert", "fp16"),
        ("xlm-roberta", "fp32"),
        ("xlm-roberta", "int8"),
    ],
)
def test_scores_are_those_of_transformers(
    models: Path, tmp_path: Path, kind: str, precision: str
) -> None:
    repository = tmp_path / "repository"
    assert export(models / kind, repository, "--precision", precision) == 0

    folder = installed(repository)
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "model.onnx", "tokenizer.json"
    }  # fmt: skip
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["truncation"] is None
    assert tokenizer["padding"] is None
    manifest = RerankerManifest.load(repository)
    assert (manifest.model, manifest.precision, manifest.activation) == (kind, precision, "sigmoid")
    assert manifest.max_tokens == (POSITIONS if kind == "bert" else POSITIONS - 16)
    assert manifest.sha256 == model_sha256(folder)
    assert set(manifest.source_files) >= {"config.json", "model.safetensors"}
    assert manifest.speed.keys() == {"tokens", "batch_1_pairs_per_s", "batch_32_pairs_per_s"}
    limit = reranker.TOLERANCES[precision]
    assert manifest.parity["max_difference"] <= limit.max_difference
    assert manifest.parity["min_agreement"] >= limit.min_agreement

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    kinds = {each.name: each.type for each in session.get_inputs()}
    types = {"token_type_ids"} if kind == "bert" else set()
    assert kinds == dict.fromkeys({"input_ids", "attention_mask"} | types, "tensor(int64)")
    assert [(each.name, each.type) for each in session.get_outputs()] == [
        ("logits", "tensor(float)")
    ]
    served = Reranker(
        PairTokenizer(folder / "tokenizer.json", manifest.max_tokens),
        reranker.scorer(session), "sigmoid", BatchLimits(3, 4096),
    )  # fmt: skip
    wanted = np.array(original_logits(models / kind, PAIRS, manifest.max_tokens), np.float32)
    np.testing.assert_allclose(
        activated(served.logits(PAIRS), "sigmoid"), activated(wanted, "sigmoid"),
        atol=limit.max_difference,
    )  # fmt: skip


def test_flags_override_the_models_own_settings(copy: Path) -> None:
    edit_json(copy / "config.json", sentence_transformers={"activation_fn": "torch.nn.Identity"})
    edit_json(copy / "tokenizer_config.json", model_max_length=64)

    def described(*flags: str) -> tuple[str, int]:
        found = reranker.describe(reranker.parse(["--model", str(copy), *flags]))
        return found.activation, found.max_tokens

    assert described() == ("identity", 64)
    assert described("--activation", "sigmoid", "--max-tokens", "32") == ("sigmoid", 32)


@pytest.mark.parametrize(
    ("file", "values", "activation"),
    [
        ("config.json", {}, "sigmoid"),
        ("config.json", {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation."
                         "Sigmoid"}}, "sigmoid"),
        ("config.json", {"sbert_ce_default_activation_function": "torch.nn.modules.linear."
                         "Identity"}, "identity"),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.Identity"}, "identity"),
    ],
)  # fmt: skip
def test_the_activation_is_the_models_own(
    tmp_path: Path, file: str, values: dict[str, Any], activation: str
) -> None:
    (tmp_path / file).write_text(json.dumps(values))
    config = values if file == "config.json" else {}
    assert reranker.activation_of(tmp_path, config) == activation


def test_a_plan_says_where_it_would_write(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(models / "bert", tmp_path / "repository", "--dry-run") == 0
    assert str(installed(tmp_path / "repository")) in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_a_model_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reranker.main([])
    assert "--model" in capsys.readouterr().err


def other_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])


def more_tokens(folder: Path) -> None:
    edit_json(folder / "config.json", vocab_size=100)
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (other_architecture, "model_type 'llama' is not a BERT-type cross-encoder"),
        (
            lambda folder: edit_json(folder / "config.json", architectures=["BertForMaskedLM"]),
            "its architecture is BertForMaskedLM, expected a cross-encoder",
        ),
        (
            lambda folder: edit_json(folder / "config.json", id2label={"0": "no", "1": "yes"}),
            "gives 2 labels for a pair, expected one",
        ),
        (
            lambda folder: edit_json(
                folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.Tanh"}
            ),
            "activation torch.nn.Tanh is not supported; choose with --activation",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(
                (folder / "model.safetensors").read_bytes()[:5000]
            ),
            "cannot be loaded",
        ),
        (
            lambda folder: edit_json(folder / "config.json", num_hidden_layers=3),
            "its weights lack",
        ),
        (more_tokens, "the tokenizer has"),
    ],
)  # fmt: skip
def test_a_spoilt_model_is_one_clear_line_and_leaves_the_old_one(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    old = installed(tmp_path / "repository") / "manifest.json"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    spoil(copy)
    capsys.readouterr()
    assert export(copy, tmp_path / "repository") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in old.parent.parent.iterdir()] == [old.parent.name]
    assert old.read_text() == "old"


@pytest.mark.parametrize("forced", [False, True])
def test_a_model_too_far_from_the_original_is_installed_by_force_only(
    models: Path,
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    forced: bool,
) -> None:
    save_tiny_reranker(copy, "bert", reranker.PASSAGES, seed=1)
    write_onnx = reranker.write_onnx

    def other_weights(_model: Any, folder: Path, *names: Any) -> None:
        write_onnx(reranker.load(copy)[0], folder, *names)

    monkeypatch.setattr(reranker, "write_onnx", other_weights)
    repository = tmp_path / "repository"
    flags = ["--force"] if forced else []
    assert export(models / "bert", repository, *flags) == (0 if forced else 1)
    error = capsys.readouterr().err
    assert "from the original's (at most 0.0005 for fp32)" in error
    if forced:
        assert RerankerManifest.load(repository).forced
    else:
        assert "nothing was written" in error
        assert not any(path.is_file() for path in repository.rglob("*"))


def test_the_comparison_counts_passages_in_another_order() -> None:
    shape = (len(reranker.QUESTIONS), 4)
    wanted = np.tile(np.array([0, 1, 2, 3], np.float32), (shape[0], 1))
    got = wanted.copy()
    got[0] = [1, 0, 2, 3]
    assert reranker.agreement_of(wanted.ravel(), wanted.ravel()) == 1
    total = 6 * shape[0]
    assert reranker.agreement_of(got.ravel(), wanted.ravel()) == pytest.approx(1 - 1 / total)
    assert reranker.agreement_of(got.ravel() * np.nan, wanted.ravel()) == 0


def test_the_tokenizer_of_the_tests_joins_pairs_as_its_kind_does() -> None:
    for kind, between in (("bert", ["[SEP]"]), ("xlm-roberta", ["</s>", "</s>"])):
        tokenizer = train_tokenizer(kind, ("a b",))
        tokens = tokenizer.convert_ids_to_tokens(tokenizer("a", "b")["input_ids"])
        special = [token for token in tokens if token in between]
        assert special == [*between, between[0]]
