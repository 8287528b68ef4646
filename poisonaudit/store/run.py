"""The folder in which one command leaves everything it found out."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from poisonaudit.errors import StorageError, UsageError
from poisonaudit.store import atomic, tensors
from poisonaudit.store.digest import sha256_file
from poisonaudit.store.environment import environment

if TYPE_CHECKING:
    from torch import Tensor

RUN_SCHEMA = "poisonaudit/run/1"
RUNS = "poisonaudit-runs"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder; every file in it is written in one step.

    Attributes:
        path: the folder.
        created: when the run began, UTC, ISO 8601.
    """

    path: Path
    created: str

    @classmethod
    def create(cls, command: str, out: str | os.PathLike[str] | None = None, resume: bool = False) -> RunFolder:
        """Make the folder of a new run, or take up an interrupted one.

        Args:
            command: part of the folder's name, and checked against the manifest when resuming.
            out: the folder; None means `./poisonaudit-runs/COMMAND-UTC-ID/`.
            resume: allow `out` to hold files already.

        Returns:
            The open run.

        Raises:
            UsageError: PA310 `out` is not empty, PA311 it holds another command's run, PA312 resume without
                `out`.
        """
        now = datetime.now(UTC)
        if out is None:
            if resume:
                raise UsageError("PA312", "resume needs the run's folder. Pass --out RUN.")
            out = Path(RUNS) / f"{command}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        path = atomic.make_folder(out)
        present = _names(path)
        if present and not resume:
            raise UsageError(
                "PA310",
                f"{path} is not empty ({len(present)} entries, first {present[0]!r}). "
                "Choose another --out, or pass --resume to go on with the run in it.",
            )
        run = cls(path=path, created=_text(now))
        _remove_leftovers(path)
        if not run.exists(MANIFEST):
            return run
        manifest = run.manifest()
        if manifest.get("command") != command:
            raise UsageError(
                "PA311",
                f"{path} holds a run of {str(manifest.get('command'))[:40]!r}, not of {command!r}. "
                "Choose another --out.",
            )
        return cls(path=path, created=str(manifest.get("created", run.created)))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open a finished run for reading.

        Args:
            path: a folder that holds a manifest.

        Returns:
            The run.

        Raises:
            StorageError: PA504 there is no run there, PA505 its manifest is damaged.
        """
        folder = Path(path)
        if not (folder / MANIFEST).is_file():
            raise StorageError("PA504", f"{folder} is not a finished run: it has no {MANIFEST}. Check the path.")
        run = cls(path=folder, created="")
        return cls(path=folder, created=str(run.manifest().get("created", "")))

    def file(self, name: str) -> Path:
        """Path of a file in the run.

        Args:
            name: relative, with `/` between folders.

        Returns:
            The path; nothing is created.

        Raises:
            UsageError: PA313, the name leads out of the run.
        """
        parts = PurePosixPath(name)
        if not name or parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
            raise UsageError("PA313", f"{name!r} is not a file name inside a run. Use a relative name without '..'.")
        return self.path / parts

    def exists(self, name: str) -> bool:
        """Is there a file of that name."""
        return self.file(name).is_file()

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write a file in one step and return its path."""
        target = self.file(name)
        atomic.make_folder(target.parent)
        atomic.write_bytes(target, data)
        return target

    def write_text(self, name: str, text: str) -> Path:
        """Write UTF-8 text in one step and return its path."""
        return self.write_bytes(name, text.encode("utf-8"))

    def write_json(self, name: str, body: Any) -> Path:
        """Write JSON (NaN and infinity become null) in one step and return its path."""
        return self.write_text(name, atomic.json_text(body))

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run.

        Args:
            name: relative file name.

        Returns:
            Plain data.

        Raises:
            StorageError: PA503 it cannot be read, PA504 it is missing, PA505 it is not JSON.
        """
        source = self.file(name)
        if not source.is_file():
            raise StorageError("PA504", f"{source} is missing, so this run is incomplete. Run the command again.")
        try:
            return json.loads(source.read_bytes().decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not valid JSON"
            raise StorageError("PA505", f"{source} is {reason}. Restore it or run the command again.") from None
        except OSError as error:
            raise StorageError("PA503", atomic.os_refusal("read", source, error)) from error

    def write_tensors(self, name: str, values: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> Path:
        """Write named tensors as safetensors in one step and return the path."""
        return self.write_bytes(name, tensors.tensors_to_bytes(values, metadata))

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Read a safetensors file of the run.

        Args:
            name: relative file name.

        Returns:
            Name -> CPU tensor.

        Raises:
            StorageError: PA504, it is missing.
        """
        if not self.exists(name):
            raise StorageError("PA504", f"{self.file(name)} is missing, so this run is incomplete. Run it again.")
        return tensors.read_tensors(self.file(name))

    def read_metadata(self, name: str) -> dict[str, Any]:
        """Metadata stored with `write_tensors`."""
        return tensors.read_metadata(self.file(name))

    def write_manifest(
        self,
        command: str,
        arguments: Mapping[str, Any],
        inputs: Mapping[str, str],
        seed: int,
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write `manifest.json`, the last act of a run: what was asked, what went in, what came out.

        Args:
            command: the command's name.
            arguments: as the user gave them.
            inputs: input name -> sha256.
            seed: the seed used.
            extra: further keys; the manifest's own keys win.

        Returns:
            The manifest's path.
        """
        files = {name: sha256_file(self.path / name) for name in _files(self.path)}
        body = {
            **(extra or {}),
            "schema": RUN_SCHEMA,
            "command": command,
            "arguments": arguments,
            "created": self.created,
            "finished": _text(datetime.now(UTC)),
            "inputs": inputs,
            "environment": environment(),
            "seed": seed,
            "files": files,
        }
        return self.write_json(MANIFEST, body)

    def manifest(self) -> dict[str, Any]:
        """The run's manifest.

        Returns:
            Its keys as `write_manifest` wrote them.

        Raises:
            StorageError: PA505, it is not this project's manifest.
        """
        body = self.read_json(MANIFEST)
        if not isinstance(body, dict) or body.get("schema") != RUN_SCHEMA:
            raise StorageError(
                "PA505", f"{self.path / MANIFEST} is not a {RUN_SCHEMA} manifest. Choose another folder."
            )
        return body


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise StorageError("PA503", atomic.os_refusal("read", folder, error)) from error


def _files(folder: Path) -> list[str]:
    """Relative names of the run's own regular files, links and temporary files left out."""
    found = []
    for base, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            path = Path(base, name)
            relative = path.relative_to(folder).as_posix()
            if relative != MANIFEST and not name.endswith(atomic.TEMPORARY_SUFFIX) and not path.is_symlink():
                found.append(relative)
    return sorted(found)


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that a killed process left behind."""
    for leftover in folder.glob(f".*{atomic.TEMPORARY_SUFFIX}"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
