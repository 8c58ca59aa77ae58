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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tritonrag.errors import SetupError, TritonragError
from tritonrag.sources import (
    Source,
    SourceFile,
    config_of,
    find_source,
    needed_files,
    parameters_of,
)

BYTES_PER_PARAMETER = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.1, "int4": 0.63}
"""Of an artefact's weights; the quantised ones with their scales."""


def common_options(
    parser: argparse.ArgumentParser, *, default: str | None, default_name: str
) -> None:
    """Add the options of every export program."""
    parser.add_argument(
        "--model", default=default, metavar="ID_OR_DIR",
        help=f"Hugging Face folder or hub id (default: {default_name})",
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
    parser.add_argument("--name", help="name of the model in messages (default: id or folder name)")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="print what would be downloaded and written, and the memory it takes; then stop",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true",
        help="install a model that is too far from the original; its manifest says so",
    )  # fmt: skip


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


def size(count: float) -> str:
    """Return bytes as text, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
