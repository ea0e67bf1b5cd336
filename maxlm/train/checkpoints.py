"""The checkpoints of a run: saved in the background, committed whole, verified when read.

In go flat dicts of named arrays (canonical names, any sharding) and JSON metadata; out come the same
arrays on any other mesh, device count or process count. The arrays are stored by Orbax
(`checkpoint_arrays.py`), the folder is laid out by `checkpoint_format.py`, and every array carries
a checksum that does not depend on its layout (`checksum.py`): computed on the devices before the
save and again after the restore. In a run of several processes all of them call `save`, `wait` and
`restore` together.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax

from maxlm import storage
from maxlm.errors import CheckpointError, MaxLMError, StorageError
from maxlm.train import checkpoint_checks as checks
from maxlm.train import checkpoint_format as layout
from maxlm.train import quantities as q
from maxlm.train.checkpoint_format import ArrayRecord, DamagedError, Description
from maxlm.train.checksum import (
    Pending,
    compile_checksums,
    dispatch_checksums,
    read_checksums,
)


class Checkpoints:
    """The checkpoints folder of one run, local or on gs://.

    Args:
        folder: RUN/checkpoints.
        keep_last: newest checkpoints to keep.
        keep_every_steps: also keep the first checkpoint at or after each multiple of this.
        asynchronous: write in the background; otherwise `save` waits for the commit.
        message: told, in a sentence, of everything that a person should know (a save that is
            complete, half-written or damaged checkpoints, fallbacks). A fallback also raises a
            Python warning.
    """

    def __init__(
        self,
        folder: str,
        *,
        keep_last: int = 3,
        keep_every_steps: int | None = None,
        asynchronous: bool = True,
        message: Callable[[str], None] | None = None,
    ):
        self.folder = checks.checked_folder(folder)
        self._keep_last = keep_last
        self._keep_every_steps = keep_every_steps
        self._asynchronous = asynchronous
        self._message = message or (lambda text: None)
        self._writer: Any = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._writing: tuple[int, str] | None = None  # step and folder of the save last begun
        self._damaged: set[str] = set()  # folder names that this process found damaged

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return list(layout.scan(self.folder).complete)

    def half_written(self) -> list[str]:
        """Names of the folders that killed saves left; the next save removes them."""
        return layout.scan(self.folder).half_written

    @property
    def latest(self) -> int | None:
        """The step saved last by this object (its write may still be under way), else the newest."""
        if self._writing is not None:
            return self._writing[0]
        return max(self.steps(), default=None)

    def path(self, step: int) -> str:
        """Folder of a checkpoint, complete or being written. Raises CheckpointError without one."""
        if self._writing is not None and self._writing[0] == step:
            return self._writing[1]
        listing = layout.scan(self.folder)
        if step in listing.complete:
            return storage.join(self.folder, listing.complete[step])
        known = ", ".join(map(str, listing.complete)) or "none"
        torn = [name for name in listing.half_written if name.split(".")[0] == str(step)]
        state = "is half-written" if torn else "does not exist"
        raise CheckpointError(
            f"{storage.join(self.folder, str(step))}: this checkpoint {state}; complete: {known}"
        )

    def prepare(self, targets: Mapping[str, jax.ShapeDtypeStruct]) -> threading.Thread:
        """Import Orbax and compile the checksums in a background thread, ahead of the first save."""

        def work() -> None:
            from maxlm.train import checkpoint_arrays  # noqa: F401

            compile_checksums(targets)

        thread = threading.Thread(target=work, name="prepare_checkpoints", daemon=True)
        thread.start()
        return thread

    def save(
        self,
        step: int,
        arrays: Mapping[str, jax.Array],
        metadata: Mapping[str, Any],
        *,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Begin to save; returns when the arrays may be donated, and writes on in the background.

        Waits for the save before, and raises what went wrong with it. A step that already has a
        complete checkpoint with the same checksums is left as it is; with others, the new one
        replaces it, and the old one is removed only when the new one is complete.

        Raises:
            CheckpointError, StorageError: the save before this one failed, or this cannot begin.
        """
        self.wait()
        started = time.time()
        checks.check_arrays(arrays)
        metadata = layout.check_metadata(metadata)
        pending = dispatch_checksums(arrays)
        name = self._name_for(step, pending)
        if name is None:
            self._writing = None
            self._message(f"step {step} is saved already with the same content; left as it is")
            return
        path = storage.join(self.folder, name)
        files = dict(files or {})

        def small_files() -> dict[str, bytes]:
            sums, torn = read_checksums(pending)
            if torn:
                self._message(f"{path}: devices hold different copies of {', '.join(torn[:5])}")
            description = Description(
                step, metadata, checks.array_records(shapes, sums), checks.file_records(files)
            )
            named = {f"{layout.FILES_FOLDER}/{n}": content for n, content in files.items()}
            return named | {layout.DESCRIPTION_FILE: layout.encode(description)}

        shapes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in arrays.items()}
        size = sum(a.nbytes for a in arrays.values()) + sum(map(len, files.values()))
        try:
            if jax.process_index() == 0:
                self._remove_half_written()
                storage.make_folder(self.folder)
            self._open_writer().start(path, arrays, small_files)
        except Exception as error:
            raise self._save_error(path, error) from error
        self._writing = (step, path)
        self._thread = threading.Thread(
            target=self._finish, args=(step, path, size, started), name=f"save_{step}"
        )
        self._thread.start()
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Wait for the save in the background; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            self._writing = None
            raise error

    def close(self) -> None:
        """Wait, then release threads. Raises like `wait`."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def restore(
        self,
        step: int | None,
        targets: Mapping[str, jax.ShapeDtypeStruct],
        *,
        partial: bool = False,
    ) -> tuple[dict[str, jax.Array], dict[str, Any], int]:
        """Read arrays onto the devices of their targets' shardings, and verify their checksums.

        Args:
            step: which checkpoint; None: the newest, and when that is damaged the one before it,
                and so on, saying so loudly. A step asked for by number has no substitute.
            targets: name -> shape, dtype and sharding (unset: this process's first device).
            partial: read only the targets, and let the checkpoint hold more (weights for
                evaluation); otherwise every name must be in both.

        Returns:
            arrays by name, metadata, step.

        Raises:
            CheckpointError: there is no such checkpoint, none is good, or its arrays are not those
                asked for (names, shapes and dtypes must be equal: nothing is cast).
            StorageError: the storage fails, which is no damage; UnreachableError when for now.
        """
        self.wait()
        targets = {name: checks.placed(target) for name, target in targets.items()}
        candidates = self._candidates(step)
        failures: list[str] = []
        for name in candidates:
            path = storage.join(self.folder, name)
            try:
                description, arrays = self._load(path, targets, partial)
            except DamagedError as error:
                self._damaged.add(name)
                failures.append(str(error))
                continue
            if failures:
                self._say_loudly(
                    f"{len(failures)} newer checkpoint(s) could not be used; continuing from "
                    f"step {description.step} instead:\n" + "\n".join(failures)
                )
            return arrays, checks.full_metadata(description), description.step
        raise CheckpointError(
            f"{self.folder}: no good checkpoint:\n"
            + "\n".join(failures)
            + "\nrestore the folder from a backup, or start again in another run folder"
        )

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata saved with a step, with its `step` and `format_version`."""
        return checks.full_metadata(self.description(step))

    def description(self, step: int) -> Description:
        """Everything that a checkpoint says of itself, arrays' shapes and checksums included."""
        return layout.read_description(self.path(step))

    def describe(self, step: int) -> dict[str, ArrayRecord]:
        """Table of a checkpoint's arrays by name: shape, dtype, bytes, checksum."""
        return self.description(step).arrays

    def files(self, step: int) -> dict[str, bytes]:
        """The small files saved with a step, checked against their hashes."""
        return layout.read_files(self.path(step), self.description(step))

    def verify(self, step: int) -> checks.Report:
        """Read every array and file of a checkpoint on the host and recompute its checksum.

        Needs neither model nor mesh; one process. Returns what was found, never raises for damage.
        """
        return checks.verify(self.path(step))

    def _load(
        self, path: str, targets: Mapping[str, jax.ShapeDtypeStruct], partial: bool
    ) -> tuple[Description, dict[str, jax.Array]]:
        from maxlm.train.checkpoint_arrays import read_arrays

        problems: list[str] = []
        description, arrays = None, {}
        try:
            description = layout.read_description(path)
        except DamagedError as error:
            problems = error.problems
        # All pass over a checkpoint that one of them cannot use, or they would go on from different
        # ones.
        checks.agree(path, problems)
        assert description is not None
        checks.check_targets(path, description, targets, partial)
        try:
            arrays = storage.retried(lambda: read_arrays(path, targets))
        except Exception as error:
            problems = [checks.read_problem(path, error)]
        checks.agree(path, problems)
        sums, torn = read_checksums(dispatch_checksums(arrays))
        problems = [
            f"array '{name}': its checksum is {sums[name]} instead of "
            f"{description.arrays[name].checksum}: the stored values have changed"
            for name in targets
            if sums[name] != description.arrays[name].checksum
        ]
        problems += [f"array '{name}': devices read different values" for name in torn]
        checks.agree(path, problems)
        return description, arrays

    def _candidates(self, step: int | None) -> list[str]:
        listing = layout.scan(self.folder)
        if listing.half_written:
            self._message(
                f"{self.folder}: ignored what a killed save left: "
                f"{', '.join(listing.half_written)} (removed at the next save)"
            )
        if step is None:
            steps = checks.from_first_process(sorted(listing.complete, reverse=True))
        else:
            self.path(step)  # raises when there is none
            steps = [step]
        if not steps:
            half = f" ({len(listing.half_written)} half-written)" if listing.half_written else ""
            raise CheckpointError(f"{self.folder}: there is no complete checkpoint{half}")
        return [listing.complete.get(s, str(s)) for s in steps]

    def _name_for(self, step: int, pending: Pending) -> str | None:
        """Folder name for a save of `step`; None when the same content is there already."""
        attempt = 0
        existing = layout.scan(self.folder).complete.get(step)
        if existing:
            attempt = layout.attempt_of(existing) + 1
            if existing not in self._damaged and self._same_content(existing, pending):
                attempt = -1
        attempt = checks.from_first_process([attempt])[0]
        return None if attempt < 0 else layout.folder_name(step, attempt)

    def _same_content(self, name: str, pending: Pending) -> bool:
        try:
            saved = layout.read_description(storage.join(self.folder, name)).arrays
        except DamagedError:
            self._damaged.add(name)
            return False
        return {n: record.checksum for n, record in saved.items()} == read_checksums(pending)[0]

    def _open_writer(self) -> Any:
        if self._writer is None:
            from maxlm.train.checkpoint_arrays import ArrayWriter

            self._writer = ArrayWriter()
        return self._writer

    def _finish(self, step: int, path: str, size: int, started: float) -> None:
        # Runs in the background thread, on every process.
        try:
            self._writer.wait()
            if not layout.is_committed(path):
                # A write that is cancelled within Orbax ends as if nothing were wrong.
                raise CheckpointError("the write was cancelled before its commit")
            if jax.process_index() == 0:
                about = f"{q.size(size)}, {q.duration(time.time() - started)}"
                self._message(f"step {step:,}: saved {path} ({about})")
                self._remove_surplus(step)
        except BaseException as error:
            self._error = self._save_error(path, error)

    def _remove_surplus(self, newest: int) -> None:
        listing = layout.scan(self.folder)
        damaged = {s for s, name in listing.complete.items() if name in self._damaged}
        good = [s for s in listing.complete if s not in damaged]
        # Counted back from the checkpoint just written. Later steps (somebody went back to an older
        # one by its number) are not ours to judge.
        kept = set([s for s in good if s <= newest][-self._keep_last :])
        kept |= {s for s in good if s > newest}
        # For good means for good: the damaged one too may be worth more than none.
        kept |= self._first_of_each_distance(good)
        kept |= self._first_of_each_distance(list(listing.complete))
        surplus = [name for s, name in listing.complete.items() if s not in kept]
        for name in surplus + listing.superseded:
            self._remove(name)
        for step in sorted(damaged - kept):
            self._message(f"{self.folder}: removed the damaged checkpoint of step {step}")

    def _first_of_each_distance(self, steps: list[int]) -> set[int]:
        """The first of `steps` at or after each multiple of `keep_every_steps`."""
        distance = self._keep_every_steps
        if not distance:
            return set()
        # The first stays the first of its distance when others are removed.
        first = {s // distance: s for s in sorted(steps, reverse=True) if s >= distance}
        return set(first.values())

    def _remove_half_written(self) -> None:
        for name in layout.scan(self.folder).half_written:
            self._message(f"{self.folder}: removing {name}, which a save left half-written")
            self._remove(name)

    def _remove(self, name: str) -> None:
        path = storage.join(self.folder, name)
        # The commit marker goes first: a removal that is itself killed leaves no seeming whole.
        storage.remove_file(storage.join(path, layout.COMMIT_FILE))
        storage.remove_tree(path)

    def _save_error(self, path: str, error: BaseException) -> MaxLMError:
        # Nothing may be raised here: in the background thread it would take the error's place.
        good = "which others are complete cannot be told now"
        with contextlib.suppress(Exception):
            steps = self.steps()
            newest = f"the newest complete one is step {steps[-1]}" if steps else ""
            good = newest or "there is none before it"
        state = f"this checkpoint was not saved; {good}"
        if checks.is_disk_full(error):
            if jax.process_index() == 0:
                with contextlib.suppress(Exception):
                    self._remove_half_written()  # give back what the failed save took
            return StorageError(
                f"{path}: the disk is full (or a quota is used up); {state}. "
                "Free some space and run again"
            )
        if isinstance(error, StorageError):
            return StorageError(f"{error}; {state}")
        return CheckpointError(f"{path}: cannot write: {checks.brief(error)}; {state}")

    def _say_loudly(self, text: str) -> None:
        self._message(text)
        warnings.warn(text, stacklevel=3)
