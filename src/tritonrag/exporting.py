"""What the programs in ``export/`` share: options, the plan before the work, and how they end.

Knows neither torch nor a kind of model.
"""

from __future__ import annotations

import argparse
import errno
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tritonrag import rollout, versions
from tritonrag.artifacts import read_json, size, staged
from tritonrag.errors import InvalidRequest, SetupError, TritonragError
from tritonrag.sources import (
    Source,
    SourceFile,
    config_of,
    find_source,
    needed_files,
    parameters_of,
)
from tritonrag.tokenizing import PAD_MULTIPLE
from tritonrag.versions import Kind

BYTES_PER_PARAMETER = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.1, "int4": 0.63}
"""Of an artefact's weights; the quantised ones with their scales."""


def common_options(
    parser: argparse.ArgumentParser, *, default: str | None, default_name: str | None
) -> None:
    """Add the options of every export program; with no ``default_name`` a model must be named."""
    which = f" (default: {default_name})" if default_name else ""
    parser.add_argument(
        "--model", default=default, metavar="ID_OR_DIR", required=default_name is None,
        help=f"Hugging Face folder or hub id{which}",
    )  # fmt: skip
    parser.add_argument("--revision", help="branch, tag or commit of a hub model (default: main)")
    parser.add_argument(
        "--local-files-only", action="store_true",
        help="never ask the hub: take the model from the cache (HF_HOME)",
    )  # fmt: skip
    parser.add_argument(
        "--repository", type=Path, default=Path("model_repository"), metavar="DIR",
        help="model repository to write into (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--as-version", default="", metavar="N|next",
        help="install beside what the graph uses, which `tritonrag models promote` moves "
        "(default: replace the version that the graph uses)",
    )  # fmt: skip
    parser.add_argument("--name", help="name of the model in messages (default: id or folder name)")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="print what would be downloaded and written, and the memory it takes; then stop",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true",
        help="install a model that is too far from the original; its manifest says so",
    )  # fmt: skip


def version_of(options: argparse.Namespace, kind: Kind) -> int:
    """Return the version to install as: ``--as-version``, by default the live one.

    Raises:
        InvalidRequest: it is neither a number from 1 on nor ``next``.
    """
    wanted = options.as_version
    if not wanted:
        return versions.live_version(options.repository, kind)
    if wanted == "next":
        return versions.next_version(options.repository, kind)
    if not (wanted.isascii() and wanted.isdecimal() and 1 <= int(wanted) < 2**31):
        raise InvalidRequest(f"--as-version: is {wanted!r}, expected a number from 1 on, or next")
    return int(wanted)


@contextmanager
def installing(repository: Path, kind: Kind, version: int) -> Iterator[Path]:
    """Yield an empty folder that becomes this version of ``kind`` when the block ends well.

    The version then exists for every model that reads it, and the graph stays where it is.

    Raises:
        SetupError: as :func:`tritonrag.artifacts.staged` and :func:`tritonrag.rollout.add_version`.
    """
    target = repository / kind.folder(version)
    with staged(target) as folder:
        yield folder
    rollout.add_version(repository, kind, version)
    live = versions.live_version(repository, kind)
    if version != live:
        print(f"the graph stays at version {live}; `tritonrag models promote {kind.name} {version}`"
              " moves it")  # fmt: skip


def source_of(options: argparse.Namespace) -> Source:
    """Return the model that the options name.

    Raises:
        SetupError: as :func:`tritonrag.sources.find_source`.
    """
    return find_source(options.model, options.revision, offline=options.local_files_only)


def run(work: Callable[[], None]) -> int:
    """Do the work of an export program; return its exit status.

    A known error is one line on stderr and status 1; Ctrl-C is status 130.
    """
    try:
        work()
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except (TritonragError, OSError) as error:
        print(f"error: {explained(error)}", file=sys.stderr)
        return 1
    return 0


def explained(error: Exception) -> str:
    """Return an error's message, with a remedy where the disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{error.filename or 'the disk'}: no space left; nothing was installed. "
            "`--dry-run` says how much an export needs"
        )
    return str(error)


def first_line(error: Exception) -> str:
    """Return the first line of what a library said."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def quieten() -> None:
    """Leave the terminal to the program's own lines; what matters is checked, not warned of."""
    warnings.simplefilter("ignore")
    for library in ("transformers", "torch", "onnxscript", "onnx_ir", "root"):
        logging.getLogger(library).setLevel(logging.ERROR)


def max_tokens_of(folder: Path, config: dict[str, Any], wanted: int | None) -> int:
    """Return the longest input of an encoder: ``wanted``, else what its own files say.

    It is a multiple of the server's padding.

    Raises:
        SetupError: ``wanted`` is more than the model has positions for, or nothing says how many.
    """
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if not positions:
        raise SetupError(f"{folder}: its config.json has no max_position_embeddings")
    # RoBERTa's position ids start behind the padding id, so two positions are never used.
    reserved = 2 if config["model_type"] in ("camembert", "mpnet", "roberta", "xlm-roberta") else 0
    limit = int(positions) - reserved
    if wanted is not None and not PAD_MULTIPLE <= wanted <= limit:
        raise SetupError(f"--max-tokens {wanted}: this model takes {PAD_MULTIPLE} to {limit}")
    own = read_json(folder / "sentence_bert_config.json", default={}).get("max_seq_length")
    own = own or read_json(folder / "tokenizer_config.json", default={}).get("model_max_length")
    # The server pads to a multiple, which must not lead past the last position.
    whole = wanted or min(int(own or limit), limit)
    return whole - whole % PAD_MULTIPLE or whole


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the ``tokenizer.json`` of a transformers tokenizer, without truncation and padding."""
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    fast.no_truncation()
    fast.no_padding()
    fast.save(str(folder / "tokenizer.json"))


def judged(close: bool, finding: str, *, force: bool) -> bool:
    """Return whether the model is installed by force only.

    Raises:
        SetupError: it is too far from the original, and not forced.
    """
    if close:
        return False
    if not force:
        raise SetupError(f"{finding}; nothing was written (--force installs it all the same)")
    print(f"warning: {finding}; installed because of --force", file=sys.stderr)
    return True


@dataclass(frozen=True)
class Plan:
    """What an export would read and write; sizes in bytes.

    ``rebuilt`` False: the server reads the original, and only settings are written.
    """

    model: str
    revision: str
    config: Path
    files: tuple[SourceFile, ...]
    parameters: int
    target: Path
    artefact: int
    rebuilt: bool = True

    @classmethod
    def of(cls, options: argparse.Namespace, target: Path) -> Plan:
        """Return the plan for a program's options. Of a hub model only its config is downloaded.

        Raises:
            SetupError: as :func:`tritonrag.sources.find_source`.
        """
        named = (options.model, options.revision)
        files, revision = needed_files(*named, offline=options.local_files_only)
        parameters = parameters_of(*named, offline=options.local_files_only)
        return cls(
            model=options.name or options.model,
            revision=revision,
            config=config_of(*named, offline=options.local_files_only),
            files=tuple(files),
            parameters=parameters,
            target=target,
            artefact=round(parameters * BYTES_PER_PARAMETER[options.precision]),
        )

    def show(self, more: Sequence[tuple[str, str]] = ()) -> None:
        """Print the plan, with ``more`` lines of (what, text) at its end."""
        missing = [file for file in self.files if not file.here]
        download = ", ".join(f"{file.name} ({size(file.bytes)})" for file in missing)
        total = sum(file.bytes for file in self.files)
        lines = [
            ("model", f"{self.model}, {self.parameters / 1e6:.1f} M parameters"),
            ("revision", self.revision or "a local folder"),
            ("reads", f"{len(self.files)} files, {size(total)}"),
            ("downloads", f"{size(sum(f.bytes for f in missing))}: {download}" if missing
             else "nothing"),
            *self._costs(),
            *more,
        ]  # fmt: skip
        for what, text in lines:
            print(f"{what:10} {text}")

    def _costs(self) -> list[tuple[str, str]]:
        """Return the lines of what is written and what it takes."""
        if not self.rebuilt:
            return [("writes", f"{self.target}, settings only; weights {size(self.artefact)} when "
                     "served")]  # fmt: skip
        place = next(p for p in (self.target, *self.target.absolute().parents) if p.exists())
        # The original in fp32, the export beside it, and the copy that is compared.
        exporting = 4 * self.parameters + 2 * self.artefact
        return [
            ("writes", f"{self.target}, about {size(self.artefact)}"),
            ("disk", f"about {size(2 * self.artefact)} while exporting; "
             f"{size(shutil.disk_usage(place).free)} free"),
            ("memory", f"about {size(exporting)} while exporting; weights {size(self.artefact)} "
             "when served"),
        ]  # fmt: skip
