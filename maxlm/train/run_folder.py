"""Where things are in a run's folder, and how a person names a run: `RUN` or `RUN@STEP`.

In comes a path, local or gs://; out come the paths of the run's files. Imports nothing heavy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from maxlm import storage
from maxlm.errors import CheckpointError, did_you_mean

_REFERENCE = re.compile(r"(?P<folder>.+)@(?P<step>[^/@]*)")


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of one run."""

    path: str

    @property
    def config(self) -> str:
        """The resolved config, YAML."""
        return storage.join(self.path, "config.yaml")

    @property
    def tokenizer(self) -> str:
        """Folder of the tokenizer."""
        return storage.join(self.path, "tokenizer")

    @property
    def huggingface(self) -> str:
        """Folder of the small files that came with an imported model and go with it again."""
        return storage.join(self.path, "huggingface")

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints, one folder a step in it."""
        return storage.join(self.path, "checkpoints")

    @property
    def metrics(self) -> str:
        """The metrics, one JSON object a line."""
        return storage.join(self.path, "metrics.jsonl")

    @property
    def tensorboard(self) -> str:
        """Folder of TensorBoard event files."""
        return storage.join(self.path, "tensorboard")

    @property
    def report(self) -> str:
        """The run's page."""
        return storage.join(self.path, "report.html")

    @property
    def lock(self) -> str:
        """There while a process trains in this folder."""
        return storage.join(self.path, "lock")

    @property
    def log(self) -> str:
        """What the run printed."""
        return storage.join(self.path, "log.txt")


def parse_run(reference: str) -> tuple[str, int | None]:
    """Split `RUN` or `RUN@STEP` into the run's folder and the step (None: the newest).

    A folder whose own name holds an `@` is taken as it is when it exists. The folder need not
    exist; `require_run` checks that.

    Raises:
        CheckpointError: what follows the `@` is not a step.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None or storage.exists(reference):
        return reference.rstrip("/") or reference, None
    folder, step = match["folder"].rstrip("/"), match["step"]
    if step in ("newest", "latest"):
        return folder, None
    if not step.isascii() or not step.isdigit():
        raise CheckpointError(
            f"{reference}: '{step}' is not a step; write RUN@1000, or RUN for the newest checkpoint"
        )
    return folder, int(step)


def require_run(reference: str) -> tuple[RunFolder, int | None]:
    """Like `parse_run`, for a run that must exist: its folder has a config or checkpoints.

    Raises:
        CheckpointError: there is no run; names the nearest of its neighbours.
    """
    path, step = parse_run(reference)
    run = RunFolder(path)
    if storage.exists(run.config) or storage.exists(run.checkpoints):
        return run, step
    if storage.exists(path):
        raise CheckpointError(
            f"{path}: not a run's folder: no config.yaml and no checkpoints in it"
        )
    parent, _, name = path.rpartition("/")
    near = did_you_mean(name, storage.list_names(parent or "."))
    raise CheckpointError(f"{path}: there is no such run{near}")
