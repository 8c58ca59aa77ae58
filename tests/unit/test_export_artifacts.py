"""The part of an export that needs no model: folders replaced as a whole, names, JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from tritonrag.artifacts import folder_size, model_sha256, read_json, staged
from tritonrag.errors import SetupError


def install(target: Path, text: str) -> None:
    with staged(target) as folder:
        (folder / "model.onnx").write_text(text)


def install_half(target: Path, fault: type[BaseException]) -> None:
    with staged(target) as folder:
        (folder / "model.onnx").write_text("half")
        raise fault


@pytest.fixture
def target(tmp_path: Path) -> Path:
    target = tmp_path / "embed" / "1"
    install(target, "old")
    return target


def neighbours(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_the_new_folder_replaces_the_old_one_whole(target: Path) -> None:
    (target / "left over").touch()
    install(target, "new")
    assert [path.name for path in target.iterdir()] == ["model.onnx"]
    assert (target / "model.onnx").read_text() == "new"
    assert neighbours(target) == ["1"]


@pytest.mark.parametrize("fault", [SetupError, KeyboardInterrupt, OSError])
def test_a_fault_or_interrupt_leaves_the_old_folder(
    target: Path, fault: type[BaseException]
) -> None:
    with pytest.raises(fault):
        install_half(target, fault)
    assert (target / "model.onnx").read_text() == "old"
    assert neighbours(target) == ["1"]


def test_an_interrupt_between_the_two_renames_is_undone(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(self: Path, other: Path) -> Path:
        if self.name == ".1.new":
            raise KeyboardInterrupt
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        install(target, "new")
    assert (target / "model.onnx").read_text() == "old"
    assert neighbours(target) == ["1"]


def test_what_a_killed_run_left_is_put_right(target: Path) -> None:
    target.rename(target.with_name(".1.old"))
    target.with_name(".1.new").mkdir()
    with pytest.raises(SetupError):
        install_half(target, SetupError)
    assert (target / "model.onnx").read_text() == "old"
    assert neighbours(target) == ["1"]


def test_two_exports_at_once_are_refused(target: Path) -> None:
    with staged(target), pytest.raises(SetupError, match="another export"), staged(target):
        pass


def test_the_hash_covers_external_weights(target: Path) -> None:
    alone = model_sha256(target)
    (target / "model.onnx.data").write_bytes(b"weights")
    assert model_sha256(target) != alone
    assert folder_size(target) == len("old") + len("weights")


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    assert read_json(path, default={}) == {}
    with pytest.raises(SetupError, match="no such file"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(SetupError, match="not JSON"):
        read_json(path, default={})
