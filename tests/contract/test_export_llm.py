"""The LLM's export on tiny models of several families: what is built, refused and left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime_genai")

import tiny_llms  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from tritonrag.artifacts import LLM_DIR, SERVED_MODEL, LlmManifest  # noqa: E402
from tritonrag.generation import Generation, Usage  # noqa: E402

# Exporting sets global state of torch that warns of nothing a test could act on.
pytestmark = pytest.mark.filterwarnings("ignore")

llm = tiny_llms.llm_program()

from llm_parity import DECODED, PROMPTS  # noqa: E402
from llm_parity import TEXTS as OWN_TEXTS  # noqa: E402

TEXTS = OWN_TEXTS + PROMPTS
FAMILIES = ("llama", "qwen2", "phi3", "gemma")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each family."""
    root = tmp_path_factory.mktemp("models")
    for family in tiny_llms.FAMILIES:
        tiny_llms.save(root / family, family, TEXTS)
    return {family: root / family for family in tiny_llms.FAMILIES}


@pytest.fixture
def copy(tmp_path: Path, sources: dict[str, Path]) -> Path:
    """A copy of the tiny Llama for a test to change."""
    return Path(shutil.copytree(sources["llama"], tmp_path / "changed"))


def export(source: Path, repository: Path, *flags: str) -> int:
    return int(llm.main(["--model", str(source), "--repository", str(repository), *flags]))


def settings(repository: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repository / LLM_DIR / "genai_config.json").read_text())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_is_the_original_token_for_token(
    sources: dict[str, Path], tmp_path: Path, family: str
) -> None:
    assert export(sources[family], tmp_path, "--precision", "fp32") == 0
    manifest = LlmManifest.load(tmp_path)
    assert (manifest.engine, manifest.execution, manifest.precision) == ("genai", "cpu", "fp32")
    assert (manifest.context_tokens, manifest.forced) == (512, False)
    assert manifest.parity["greedy_prefix"] == DECODED
    assert manifest.parity["perplexity_original"] > 1
    assert set(manifest.speed) == {"prefill_tokens_per_s", "decode_tokens_per_s"}
    assert all(value > 0 for value in manifest.speed.values())
    assert manifest.stop_tokens == ["</s>", tiny_llms.TURN_END]


@pytest.mark.parametrize("family", FAMILIES)
def test_int4_with_a_lower_context_is_within_its_tolerance(
    sources: dict[str, Path], tmp_path: Path, family: str
) -> None:
    assert export(sources[family], tmp_path, "--context", "300") == 0
    manifest = LlmManifest.load(tmp_path)
    assert (manifest.precision, manifest.options["int4_method"]) == ("int4", "rtn")
    assert not manifest.forced
    found = settings(tmp_path)
    assert (found["model"]["context_length"], found["search"]["max_length"]) == (300, 300)
    assert manifest.context_tokens == 300


OTHERS = ("gemma2", "gemma3", "qwen3", "mistral", "smollm3", "llama3", "phi3_long")


@pytest.mark.parametrize("family", OTHERS)
def test_other_families(sources: dict[str, Path], tmp_path: Path, family: str) -> None:
    """Three of them with a sliding window that is longer than what is read."""
    assert export(sources[family], tmp_path, "--precision", "fp32") == 0
    assert LlmManifest.load(tmp_path).parity["greedy_prefix"] == DECODED


@pytest.mark.parametrize("flags", [("--int4-method", "k_quant"), ("--precision", "int8")])
def test_other_ways_to_quantise(
    sources: dict[str, Path], tmp_path: Path, flags: tuple[str, str]
) -> None:
    assert export(sources["llama"], tmp_path, *flags) == 0
    options = LlmManifest.load(tmp_path).options
    assert options[flags[0].removeprefix("--").replace("-", "_")] == flags[1]


def quantise(folder: Path, method: str) -> dict[str, Any]:
    """Make a saved model a 4-bit checkpoint of ``method``; return the weights of its codes."""
    stored = load_file(folder / "model.safetensors")
    packed, meant = {}, {}
    for name, weight in stored.items():
        if "_proj." not in name:
            packed[name] = weight
            continue
        layer = name.removesuffix(".weight")
        codes, zeros, scales = round_to_codes(weight.T)
        pack = pack_awq if method == "awq" else pack_gptq
        packed |= {f"{layer}.{part}": tensor for part, tensor in pack(codes, zeros).items()}
        packed[f"{layer}.scales"] = scales.half()
        each = scales.half().float().repeat_interleave(GROUP, 0)
        meant[name] = ((codes - zeros.repeat_interleave(GROUP, 0)) * each).T
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    quantised = {"quant_method": method, "bits": 4, "group_size": GROUP}
    quantised |= {"zero_point": True, "version": "gemm"} if method == "awq" else {
        "sym": False, "desc_act": False, "checkpoint_format": "gptq"
    }  # fmt: skip
    tiny_llms.edit_json(folder / "config.json", quantization_config=quantised)
    return meant


GROUP = 32


def round_to_codes(weight: Any) -> tuple[Any, Any, Any]:
    """Return codes [in, out], zeros and scales [group, out] of an [in, out] weight."""
    groups = weight.reshape(-1, GROUP, weight.shape[1])
    low, high = groups.amin(1), groups.amax(1)
    scales = (high - low) / 15
    zeros = (-low / scales).round().clamp(1, 15).int()
    codes = (groups / scales[:, None]).round().int() + zeros[:, None]
    return codes.clamp(0, 15).reshape(weight.shape), zeros, scales


def pack(codes: Any, order: tuple[int, ...]) -> Any:
    """Pack [rows, n * 8] into int32 [rows, n]; bits 4 i hold the code ``order[i]`` of eight."""
    eights = codes.reshape(len(codes), -1, 8).long()
    number = sum(eights[..., place] << (4 * i) for i, place in enumerate(order))
    return torch.where(number >= 2**31, number - 2**32, number).int().contiguous()


def pack_gptq(codes: Any, zeros: Any) -> dict[str, Any]:
    order = (0, 1, 2, 3, 4, 5, 6, 7)
    return {
        "qweight": pack(codes.T, order).T.contiguous(),
        "qzeros": pack(zeros - 1, order),
        "g_idx": (torch.arange(len(codes)) // GROUP).int(),
    }


def pack_awq(codes: Any, zeros: Any) -> dict[str, Any]:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {"qweight": pack(codes, order), "qzeros": pack(zeros, order)}


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_quantised_checkpoint_is_built_as_it_is(
    copy: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    meant = quantise(copy, method)
    config = json.loads((copy / "config.json").read_text())
    read, lacking = llm.load_dequantised(copy, config["quantization_config"])
    assert not lacking
    for name, weight in meant.items():
        torch.testing.assert_close(read.state_dict()[name], weight)

    assert export(copy, tmp_path / "repository", "--precision", "fp32") == 1
    assert "give --precision int4" in capsys.readouterr().err
    assert export(copy, tmp_path / "repository", "--int4-method", "rtn") == 1
    assert "only for a model that is not quantised already" in capsys.readouterr().err
    assert export(copy, tmp_path / "repository") == 0
    manifest = LlmManifest.load(tmp_path / "repository")
    assert manifest.parity["logit_cosine"] > 0.99
    assert "int4_method" not in manifest.options


def test_another_kind_of_quantised_checkpoint_is_refused(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"quant_method": "bitsandbytes", "bits": 4}
    tiny_llms.edit_json(copy / "config.json", quantization_config=config)
    assert export(copy, tmp_path / "repository") == 1
    assert "quantised by bitsandbytes to 4 bits; supported are gptq" in capsys.readouterr().err


REFUSALS = [
    (("--precision", "bf16"), "the builder makes fp32, int8, int4 for cpu"),
    (("--context", "513"), "--context 513: this model takes 256 to 512"),
    (("--context", "8"), "--context 8: this model takes 256 to 512"),
    (("--num-blocks", "8"), "--num-blocks is only for --execution cuda"),
    (("--precision", "fp32", "--int4-method", "rtn"), "--int4-method is only for --precision int4"),
    (("--execution", "cuda", "--block-size", "48"), "expected a power of two from 16"),
    (("--execution", "cuda", "--max-batch-size", "500"), "--max-batch-size 500: expected 1 to 256"),
    (("--execution", "cuda", "--num-blocks", "1", "--dry-run"), "1 blocks of 256 hold 256 tokens"),
    (("--execution", "cuda", "--gpu-memory", "0.0001", "--dry-run"), "leave no room"),
    (("--tensor-parallel", "2"), "--tensor-parallel is only for --target vllm and --target tens"),
    (("--target", "vllm", "--precision", "int4"), "vllm reads weights as they are"),
    (("--target", "vllm", "--execution", "cpu"), "--execution is only for --target genai"),
    (("--target", "vllm", "--gpu-utilization", "2"), "--gpu-utilization 2: expected 0.05 to 1"),
    (("--target", "vllm", "--grounding", "quote"), "export it with --grounding free"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSALS, ids=lambda each: " ".join(each)[:40])
def test_flags_that_do_not_go_together_are_one_clear_line(
    sources: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    assert export(sources["llama"], tmp_path / "repository", *flags) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "repository").exists()


@pytest.mark.skipif(llm.genai.is_cuda_available(), reason="there is a GPU, which compares")
def test_without_a_gpu_a_model_for_cuda_is_installed_by_force_only(
    sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--execution", "cuda", "--precision", "bf16", "--gpu-memory", "0.01")
    assert export(sources["qwen2"], tmp_path / "repository", *flags) == 1
    assert "there is no GPU here" in capsys.readouterr().err
    assert export(sources["qwen2"], tmp_path / "repository", *flags, "--force") == 0
    manifest = LlmManifest.load(tmp_path / "repository")
    assert (manifest.execution, manifest.forced, manifest.parity) == ("cuda", True, {})
    batching = settings(tmp_path / "repository")["engine"]["dynamic_batching"]
    paged = manifest.options["paged"]
    assert batching == {
        "block_size": paged["block_size"],
        "num_blocks": paged["blocks"],
        "max_batch_size": paged["max_batch_size"],
    }
    # 2 layers of 2 heads of 16, keys and values in 16 bits: 256 bytes a token.
    assert 0.009e9 - 0.5e6 < paged["blocks"] * paged["block_size"] * 256 < 0.009e9


def test_the_plan_says_what_the_cache_takes(
    sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--dry-run", "--execution", "cuda", "--precision", "bf16", "--gpu-memory", "0.01")
    assert export(sources["gemma2"], tmp_path, *flags) == 0
    said = capsys.readouterr().out
    assert "512 B per token (2 layers, 2 KV heads of 32, 16 bits)" in said
    assert "262.1 kB per sequence of 512 tokens; the window of 128 tokens" in said
    assert "0.01 GB, 90% usable" in said
    assert not any(tmp_path.iterdir())


def test_help_names_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        llm.main(["--help"])
    assert raised.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for family in llm.ARCHITECTURES.values():
        assert family in said


def test_the_plan_for_vllm_writes_no_weights(
    sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--target", "vllm", "--dry-run", "--tensor-parallel", "2", "--gpu-memory", "1")
    assert export(sources["llama"], tmp_path, *flags) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / SERVED_MODEL}, settings only; weights" in said
    assert "256 B per token" in said
    assert "2 of 1 GB, 90% usable: 1.8 GB beside the weights" in said
    assert "while exporting" not in said


class Ending:
    """A sink that keeps how a generation ended."""

    def __init__(self) -> None:
        self.text, self.reason, self.usage = "", "", Usage()
        self.ended = threading.Event()

    def delta(self, text: str) -> None:
        self.text += text

    def finish(self, reason: str, usage: Usage) -> None:
        self.reason, self.usage = reason, usage
        self.ended.set()

    def fail(self, error: Exception) -> None:
        self.reason = str(error)
        self.ended.set()

    def cancelled(self) -> bool:
        return False


@pytest.mark.parametrize("token", ["</s>", tiny_llms.TURN_END])
def test_each_stop_token_ends_a_generation(copy: Path, tmp_path: Path, token: str) -> None:
    """A model that says nothing but the token; only generation_config.json names the second."""
    from tritonrag.engines.genai import GenaiEngine

    stored = load_file(copy / "model.safetensors")
    stored["model.embed_tokens.weight"][:, 0] = 5.0  # the same in every token, so it stays positive
    stored["lm_head.weight"].zero_()
    number = llm.AutoTokenizer.from_pretrained(copy).convert_tokens_to_ids(token)
    stored["lm_head.weight"][number, 0] = 10.0
    save_file(stored, copy / "model.safetensors", metadata={"format": "pt"})
    assert export(copy, tmp_path / "repository", "--precision", "fp32", "--force") == 0
    engine = GenaiEngine(tmp_path / "repository", 1, queue_size=1, threads=1)
    try:
        sink = Ending()
        engine.submit(Generation("The river", max_tokens=20), sink)
        assert sink.ended.wait(20)
    finally:
        engine.close()

    assert (sink.text, sink.reason) == ("", "stop")
    assert sink.usage.generated_tokens <= 1


def test_a_folder_without_weights_is_one_clear_line(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "model.safetensors").unlink()
    assert export(copy, tmp_path / "repository") == 1
    assert "cannot be loaded" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_for_vllm_two_folders_are_written_and_removed_again(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    flags = ("--target", "vllm", "--context", "300", "--tensor-parallel", "2")
    assert export(sources["llama"], tmp_path, *flags) == 0
    manifest = LlmManifest.load(tmp_path)
    assert (manifest.engine, manifest.context_tokens) == ("vllm", 300)
    assert manifest.stop_tokens == ["</s>", tiny_llms.TURN_END]
    names = sorted(path.name for path in (tmp_path / LLM_DIR).iterdir())
    assert names == ["manifest.json", "tokenizer.json"]
    assert json.loads((tmp_path / SERVED_MODEL / "1" / "model.json").read_text()) == {
        "model": str(sources["llama"].resolve()),
        "dtype": "auto",
        "max_model_len": 300,
        "gpu_memory_utilization": 0.9,
        "tensor_parallel_size": 2,
        "enable_prefix_caching": True,
    }

    assert export(sources["llama"], tmp_path, "--precision", "fp32") == 0
    assert LlmManifest.load(tmp_path).engine == "genai"
    assert not (tmp_path / SERVED_MODEL).exists()


def test_for_tensorrt_llm_its_model_yaml_is_written(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    flags = ("--target", "tensorrtllm", "--precision", "bf16", "--gpu-utilization", "0.8")
    assert export(sources["llama"], tmp_path, *flags) == 0
    folder = tmp_path / SERVED_MODEL
    assert (LlmManifest.load(tmp_path).engine, LlmManifest.load(tmp_path).precision) == (
        "tensorrtllm", "bf16",
    )  # fmt: skip
    assert yaml.safe_load((folder / "1" / "model.yaml").read_text()) == {
        "model": str(sources["llama"].resolve()),
        "dtype": "bfloat16",
        "backend": "pytorch",
        "max_seq_len": 512,
        "tensor_parallel_size": 1,
        "kv_cache_config": {"free_gpu_memory_fraction": 0.8, "enable_block_reuse": True},
        "triton_config": {"max_batch_size": 0, "decoupled": True},
    }
    config = (folder / "config.pbtxt").read_text()
    assert "max_batch_size: 0" in config, "the same as in model.yaml, or the model does not load"
    assert "decoupled: true" in config

    assert export(sources["llama"], tmp_path, "--target", "vllm") == 0
    assert not (folder / "1" / "model.yaml").exists()


def test_without_tensorrt_llms_own_model_the_folder_says_where_it_is_found(tmp_path: Path) -> None:
    model = tiny_llms.ROOT / "export" / "tensorrtllm_model.py"
    run = subprocess.run(
        [sys.executable, str(model)], env={"TRTLLM_LLMAPI": str(tmp_path)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert "model.py: not found; serve this model in a -trtllm-python-py3 image" in run.stderr


def test_a_model_of_the_users_own_is_neither_replaced_nor_removed(
    sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / SERVED_MODEL / "config.pbtxt"
    own.parent.mkdir()
    own.write_text('name: "llm"')
    assert export(sources["llama"], tmp_path, "--target", "vllm") == 1
    assert "a model of your own has the name that this needs" in capsys.readouterr().err
    assert export(sources["llama"], tmp_path, "--precision", "fp32") == 0
    assert own.read_text() == 'name: "llm"'


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The manifest of a model that is installed already."""
    path = tmp_path / "repository" / LLM_DIR / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text("old")
    return path


def left(repository: Path) -> list[str]:
    """Return every file and folder in a repository."""
    return sorted(str(path.relative_to(repository)) for path in repository.rglob("*"))


@pytest.fixture
def building(sources: dict[str, Path], old: Path, tmp_path: Path) -> Iterator[Any]:
    """An export in a process of its own, while its builder runs, and the builder."""
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, str(tiny_llms.ROOT / "export" / "llm.py"), "--precision", "fp32"]
    command += ["--model", str(sources["llama"]), "--repository", str(old.parents[3])]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
    )  # fmt: skip
    try:
        yield process, builder_of(process)
    finally:
        process.kill()
        process.communicate()


def builder_of(process: subprocess.Popen[str]) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for child in psutil.Process(process.pid).children():
            if any("builder" in argument for argument in child.cmdline()):
                return child
        time.sleep(0.02)
    raise AssertionError(f"no builder was started: {process.communicate()}")


@pytest.mark.parametrize("to", ["the program", "the terminal's whole group"])
def test_an_interrupt_leaves_nothing_behind(
    building: Any, old: Path, tmp_path: Path, to: str
) -> None:
    process, builder = building
    time.sleep(0.5)
    if to == "the program":
        process.send_signal(signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=20)

    assert process.returncode == 130
    assert error == "interrupted: nothing was written\n"
    assert not builder.is_running()
    assert left(old.parents[3]) == ["generate", "generate/1", "generate/1/llm",
                                    "generate/1/llm/manifest.json"]  # fmt: skip
    assert old.read_text() == "old"
    assert not list((tmp_path / "tmp").iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB, too small for the tiny Llama."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False, timeout=10)
    except OSError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True, timeout=10)


def test_a_full_disk_is_named_with_a_remedy(
    sources: dict[str, Path], small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(sources["llama"], small_disk, "--precision", "fp32") == 1
    error = capsys.readouterr().err
    assert str(small_disk) in error
    assert "no space left; nothing was installed. `--dry-run` says how much" in error
    assert error.count("\n") == 1
    assert not [path for path in small_disk.rglob("*") if path.is_file()]
