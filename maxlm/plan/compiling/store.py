"""Compiled programs on disk, by a hash of what was compiled: whole ones only.

In: a hash, the compiler's text and its figures; out: the same, later. An entry is a folder that gets its
name when everything is in it, so one that is there is whole unless the disk damaged it (its text
is checked against a hash). While a program is compiled, its folder is called `HASH.unfinished-PID`:
one whose process is gone tells of a compile that was cut short. Two processes that compile the same
program at once both finish; the first one's entry stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from maxlm.errors import StorageError

_TEXT, _RESULT, _UNFINISHED = "program.txt.zst", "result.json", ".unfinished-"


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a program, or said when it refused.

    Attributes:
        hash: of the program, compiler options, topology and versions.
        folder: where it lies.
        memory: fields of `memory_analysis()`, in bytes of one device; empty where it was refused.
        out_of_memory: the compiler's message where the program needs more memory than the chip has.
        seconds: that the compiler took.
        versions: of jax, jaxlib, libtpu and maxlm.
        sources: hash of the code that was traced; the lines in the text are that code's.
        text_hash: SHA-256 of the compressed text.
    """

    hash: str
    folder: str
    memory: dict[str, int]
    out_of_memory: str
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    sources: str = ""
    text_hash: str = ""

    @property
    def text(self) -> str:
        """The optimised, scheduled program of one device; empty where it was refused."""
        if self.out_of_memory:
            return ""
        return zstandard.decompress((Path(self.folder) / _TEXT).read_bytes()).decode()


class CompileStore:
    """A folder of compiled programs."""

    def __init__(self, folder: str | os.PathLike[str]):
        """Open it; it is made when something is put in. Raises StorageError for no folder."""
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise StorageError(f"{self.folder} is a file: the planner's cache needs a folder")

    def get(self, hash: str) -> Compiled | None:
        """The program of a hash; None where there is none that is whole."""
        folder = self.folder / hash
        try:
            fields: dict[str, Any] = json.loads((folder / _RESULT).read_text())
            if not fields["out_of_memory"]:
                found = hashlib.sha256((folder / _TEXT).read_bytes()).hexdigest()
                if found != fields["text_hash"]:
                    raise ValueError("damaged")
            return Compiled(**{**fields, "folder": str(folder)})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):  # damaged, or of another version of this file
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def begin(self, hash: str) -> Path:
        """A folder for a compile that begins now. Raises StorageError where none can be made."""
        folder = self.folder / f"{hash}{_UNFINISHED}{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {folder} for a compiled program: {error}") from error
        return folder

    def cut_short(self, hash: str) -> int:
        """Remove what compiles of this program left that ended before they were done; how many."""
        left = [
            path
            for path in self.folder.glob(f"{hash}{_UNFINISHED}*")
            if not _is_alive(int(path.name.rpartition("-")[2]))
        ]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        return len(left)

    def put(self, unfinished: Path, compiled: Compiled, text: str) -> Compiled:
        """Give a finished compile its name. Raises StorageError where the disk is full."""
        final = self.folder / compiled.hash
        packed = zstandard.compress(text.encode(), 9)
        fields = asdict(compiled) | {"text_hash": hashlib.sha256(packed).hexdigest()}
        fields["folder"] = str(final)
        try:
            (unfinished / _TEXT).write_bytes(packed)
            (unfinished / _RESULT).write_text(json.dumps(fields, indent=1))
            unfinished.rename(final)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if self.get(compiled.hash) is None:
                raise StorageError(f"cannot keep a compiled program in {final}: {error}") from error
        stored = self.get(compiled.hash)
        assert stored is not None
        return stored

    def hash_of_request(self, request: str) -> str | None:
        """The program's hash of a request that was traced before; None: not by this code."""
        try:
            return (self.folder / "requests" / request).read_text().strip() or None
        except OSError:
            return None

    def remember_request(self, request: str, hash: str) -> None:
        """Note which program a request is, so that it need not be traced again."""
        path = self.folder / "requests" / request
        path.parent.mkdir(parents=True, exist_ok=True)
        partly = path.with_name(f"{path.name}.{os.getpid()}")
        partly.write_text(hash)
        partly.replace(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
