"""Models by folder or hub id: what is found, downloaded, checked, and said when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import COMMIT, Hub, serving

from tritonrag.errors import SetupError
from tritonrag.sources import check_files, find_source, needed_files, parameters_of

ID = "someone/small-model"
PROGRAM = """
import json, sys
from tritonrag.errors import SetupError
from tritonrag.sources import check_files, config_of, find_source, needed_files, parameters_of
try:
    {call}
except SetupError as error:
    sys.exit(str(error))
"""
FIND = 'print(json.dumps(find_source("someone/small-model").hashes()))'
PLAN = """
    files, revision = needed_files("someone/small-model")
    count = parameters_of("someone/small-model")
    print(json.dumps([revision, count, [[f.name, f.bytes, f.here] for f in files]]))
"""


def safetensors(*shapes: tuple[int, ...]) -> bytes:
    header, offset = {}, 0
    for number, shape in enumerate(shapes):
        size = 4
        for each in shape:
            size *= each
        spec = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        header[f"weight.{number}"] = spec
        offset += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(offset)


@pytest.fixture
def hub() -> Hub:
    files = {
        "config.json": b'{"model_type": "bert"}',
        "model.safetensors": safetensors((4000, 3), (5,)),
        "pytorch_model.bin": b"not read",
        "1_Pooling/config.json": b"{}",
    }
    return Hub(ID, files)


def call(text: str, hub: Hub, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program on a hub of its own: the library reads its address at import."""
    with serving(hub) as address:
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home)} | variables
        return subprocess.run(
            [sys.executable, "-c", PROGRAM.format(call=text)],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


def said(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_a_plan_downloads_nothing_but_says_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    done = call(PLAN, hub, tmp_path)

    assert done.returncode == 0, done.stderr
    revision, count, files = json.loads(done.stdout)
    assert (revision, count) == (COMMIT, 12_005)
    assert sorted(files) == [
        ["1_Pooling/config.json", 2, False],
        ["config.json", 22, False],
        ["model.safetensors", len(hub.files["model.safetensors"]), False],
    ]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_download_is_found_again_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    first = call(FIND, hub, tmp_path)
    offline = call(
        'print(json.dumps(find_source("someone/small-model", offline=True).hashes()))',
        Hub("another/model", {}), tmp_path,
    )  # fmt: skip

    assert first.returncode == 0, first.stderr
    assert sorted(json.loads(first.stdout)) == [
        "1_Pooling/config.json", "config.json", "model.safetensors",
    ]  # fmt: skip
    assert offline.stdout == first.stdout


def test_a_download_that_broke_off_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = safetensors((2_000_000, 3))
    hub.cut = 12_000_000
    done = call(FIND, hub, tmp_path)

    assert done.returncode == 0, done.stderr
    assert hub.ranges == [f"bytes={10 << 20}-"]  # the library writes in pieces of 10 MiB


def test_a_damaged_download_is_removed_and_named(hub: Hub, tmp_path: Path) -> None:
    hub.damaged = {"model.safetensors"}
    done = call(FIND, hub, tmp_path)

    assert "model.safetensors is damaged" in said(done)
    assert not [path for path in tmp_path.rglob("model.safetensors") if path.exists()]


@pytest.mark.parametrize(
    ("change", "text", "message"),
    [
        ({"gated": True}, FIND, "is gated; accept its terms"),
        ({"id": "another/model"}, FIND, "no such model on the hub; a private one needs HF_TOKEN"),
        ({}, 'find_source("someone/small-model", "v9")', "has no such revision"),
        ({"files": {"README.md": b""}}, FIND, "no config.json in it"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_a_remedy(
    hub: Hub, tmp_path: Path, change: dict[str, object], text: str, message: str
) -> None:
    for name, value in change.items():
        setattr(hub, name, value)
    done = call(text, hub, tmp_path)

    assert done.returncode == 1
    assert message in said(done)


def test_offline_without_a_copy_says_how_to_get_one(hub: Hub, tmp_path: Path) -> None:
    done = call('find_source("someone/small-model", offline=True)', hub, tmp_path)

    assert "set HF_HOME to its cache, with --local-files-only" in said(done)


def model(folder: Path, weights: bytes) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_folder_is_named_by_itself_or_by_its_parent(tmp_path: Path) -> None:
    named = model(tmp_path / "mine", safetensors((2, 2)))
    plain = model(tmp_path / "demo_llm" / "model", safetensors((2, 2)))

    assert find_source(str(named)).id == "mine"
    assert find_source(str(plain)).id == "demo_llm"
    assert parameters_of(str(named)) == 4
    files, revision = needed_files(str(named))
    assert ([file.name for file in files], revision) == (["config.json", "model.safetensors"], "")


def test_files_that_are_not_the_expected_ones_are_named(tmp_path: Path) -> None:
    source = find_source(str(model(tmp_path / "mine", safetensors((2, 2)))))
    expected = source.hashes()
    check_files(source, expected)
    for name, change, message in (
        ("config.json", "[]", r"config\.json: its SHA-256 is 4f53cda.*, expected 44136fa.*--model"),
        ("more.json", "{}", r"more\.json: .* expected no such file"),
        ("config.json", None, r"config\.json: its SHA-256 is that of no file"),
    ):
        path = source.folder / name
        path.unlink() if change is None else path.write_text(change)
        with pytest.raises(SetupError, match=message):
            check_files(source, expected)
        path.unlink(missing_ok=True)
        (source.folder / "config.json").write_text("{}")


def test_truncated_weights_are_named(tmp_path: Path) -> None:
    folder = model(tmp_path / "mine", safetensors((2, 2))[:20])

    with pytest.raises(SetupError, match=r"model\.safetensors: truncated"):
        parameters_of(str(folder))


def test_neither_a_folder_nor_an_id(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no such folder"):
        find_source(f"{tmp_path}/absent")
