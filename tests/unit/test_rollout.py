"""Versions on disk: which are installed, what is pinned, and what a change leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from graph_samples import ENSEMBLE, STEP, install, make_repository
from tritonclient.grpc import model_config_pb2

from tritonrag import rollout, versions
from tritonrag.errors import InvalidRequest, NotFound, SetupError
from tritonrag.versions import EMBED, GENERATE, Live


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "models")


def config(path: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def steps(repository: Path, ensemble: str = "rag", name: str = "live") -> dict[str, int]:
    found = config(repository / ensemble / "configs" / f"{name}.pbtxt")
    return {step.model_name: step.model_version for step in found.ensemble_scheduling.step}


def served(repository: Path, model: str, name: str = "live") -> list[int]:
    found = config(repository / model / "configs" / f"{name}.pbtxt")
    return list(found.version_policy.specific.versions)


def test_a_second_version_is_served_and_the_graph_stays(repository: Path) -> None:
    before = (repository / "rag/config.pbtxt").read_bytes()
    install(repository, EMBED, 2)

    assert versions.installed(repository, EMBED) == [1, 2]
    assert versions.next_version(repository, EMBED) == 3
    assert set(steps(repository).values()) == {1}
    assert served(repository, "tokenize") == served(repository, "embed") == [1, 2]
    assert served(repository, "generate") == [1]
    assert (repository / "retrieve/2/model.py").resolve() == repository / "retrieve/1/model.py"
    assert not (repository / "embed/2/model.py").exists()
    assert (repository / "rag/config.pbtxt").read_bytes() == before


def test_a_promotion_moves_the_steps_of_its_kind_alone(repository: Path) -> None:
    install(repository, EMBED, 2)
    rollout.set_live(repository, EMBED, Live(2, 1))

    assert steps(repository) == dict.fromkeys(EMBED.models, 2) | dict.fromkeys(GENERATE.models, 1)
    assert set(steps(repository, "search").values()) == {2}
    assert versions.live(repository, EMBED) == Live(2, 1)
    assert versions.live(repository, GENERATE) == Live(1)


def test_a_handwritten_variant_is_pinned_too(repository: Path) -> None:
    folder = repository / "search/configs"
    variant = ENSEMBLE.format("search", STEP.format("embed") + ", " + STEP.format("other"))
    (folder / "rerank.pbtxt").write_text(variant)
    rollout.set_live(repository, EMBED, Live(1))

    assert rollout.config_name() == "live"
    name = rollout.config_name("rerank")
    assert steps(repository, "search", name) == {"embed": 1, "other": -1}
    # Triton falls back to config.pbtxt, which is not pinned: every model gets a file of that name.
    assert set(steps(repository, "rag", name).values()) == {1}
    assert served(repository, "embed", name) == [1]
    (folder / "rerank.pbtxt").unlink()
    rollout.write(repository)
    assert not (folder / f"{name}.pbtxt").exists()


def test_what_is_up_to_date_is_not_touched(repository: Path) -> None:
    """A changed time would make Triton load the model again."""
    path = repository / "embed/configs/live.pbtxt"
    before = path.stat().st_mtime_ns, path.stat().st_ino
    rollout.set_live(repository, GENERATE, Live(1))

    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_a_start_needs_no_right_to_write(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = repository / "embed/configs/live.pbtxt"
    path.unlink()
    monkeypatch.setattr(rollout.os, "access", lambda *_: False)
    rollout.refresh(repository)
    assert not path.exists()
    install(repository, EMBED, 2)
    path.unlink()
    rollout.refresh(repository)  # -1 would mean version 2
    assert path.exists()


def test_a_policy_by_hand_is_kept() -> None:
    text = 'name: "embed"\nversion_policy { all {} }\n'
    assert rollout.pinned(text, {}, [1, 2], "config.pbtxt").endswith(text)


def test_comments_are_no_steps() -> None:
    text = '# model_name: "embed" is the first\n' + ENSEMBLE.format("s", STEP.format("embed"))
    assert "model_version: 3" in rollout.pinned(text, {"embed": 3}, [], "config.pbtxt")


@pytest.mark.parametrize(
    "step", ['{ model_name: "embed" }', '{ model_version: -1 model_name: "embed" }']
)
def test_a_step_that_cannot_be_pinned_is_named(step: str) -> None:
    text = ENSEMBLE.format("search", step)
    with pytest.raises(SetupError, match="step of embed has no model_version after its model_name"):
        rollout.pinned(text, {"embed": 1}, [], "search/config.pbtxt")


def test_without_an_artefact_nothing_is_pinned(repository: Path) -> None:
    """An LLM behind an endpoint has none."""
    (repository / "generate/1/llm/manifest.json").unlink()
    rollout.write(repository)

    assert steps(repository)["generate"] == -1
    assert served(repository, "generate") == []


def test_the_first_export_may_have_any_number(repository: Path) -> None:
    (repository / "embed/1/manifest.json").unlink()
    install(repository, EMBED, 7)
    assert versions.live_version(repository, EMBED) == 7
    install(repository, EMBED, 1)
    assert versions.live_version(repository, EMBED) == 7


def test_a_version_is_forgotten_and_then_deleted(repository: Path) -> None:
    install(repository, EMBED, 2)
    install(repository, EMBED, 3)
    rollout.set_live(repository, EMBED, Live(2, 3))
    with pytest.raises(InvalidRequest, match="version 2 is the live one"):
        rollout.forget(repository, EMBED, 2)
    for version in (3, 1):
        rollout.forget(repository, EMBED, version)
        rollout.remove_files(repository, EMBED, version)

    assert versions.installed(repository, EMBED) == served(repository, "tokenize") == [2]
    assert versions.live(repository, EMBED) == Live(2)
    assert not (repository / "tokenize/3").exists()
    assert (repository / "tokenize/1/model.py").is_file()
    with pytest.raises(NotFound, match="version 3 is not installed, there are 2;"):
        rollout.forget(repository, EMBED, 3)


def test_kinds_are_those_of_the_repository(repository: Path) -> None:
    assert versions.kinds(repository) == [EMBED, GENERATE]
    with pytest.raises(NotFound, match="is 'rerank', expected embed or generate"):
        versions.kind_of(repository, "rerank")


def test_a_damaged_record_is_named(repository: Path) -> None:
    (repository / "embed/live.json").write_text("{")
    with pytest.raises(SetupError, match=r"embed/live.json: is damaged .*models promote embed N"):
        versions.live(repository, EMBED)
