"""`maxlm train CONFIG [key=value …]`: pretrain; the same command again resumes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from maxlm.cli.process_arguments import add_process_arguments, process_arguments

if TYPE_CHECKING:
    from maxlm.config.schema import RunConfig
    from maxlm.train.display import Display
    from maxlm.train.loop import Outcome
    from maxlm.train.sinks import Sink

EPILOG = """\
examples:
  maxlm train runs/quickstart
  maxlm train runs/gpt2-124m data.mixture.books.store=stores/books train.duration='2B tokens'
  maxlm train my.yaml optimizer.kind=muon parallel.tensor=2
  maxlm train my.yaml name=annealed train.duration='500 steps' --branch-from runs/mine@8000

CONFIG is a preset (`configs/…`) or a YAML file; `maxlm config show CONFIG` prints what it means.
The run lies in OUTPUT/NAME (`output=…`, `name=…`): config, tokenizer, checkpoints, metrics.jsonl,
TensorBoard files, report.html. Ctrl-C or SIGTERM saves a checkpoint and ends; the same command goes
on from there, and does nothing when the run is finished.

One command a process trains on several (`maxlm launch local`, srun, mpirun, a TPU pod).

exit status: 0 finished, 2 a mistake to mend, 75 ended by SIGTERM or by storage that fails for now
and 130 by Ctrl-C (run it again).
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("config", help="preset or YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="set an option"
    )
    parser.add_argument(
        "--branch-from",
        metavar="RUN@STEP",
        help="start a new run from another run's state: weights, optimizer and data position",
    )
    parser.add_argument(
        "--plain", action="store_true", help="one line per record instead of a live display"
    )
    add_process_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    from maxlm.config.load import load_config
    from maxlm.parallel.processes import join, telling_the_others
    from maxlm.train.interruption import EXIT_INTERRUPTED, EXIT_PREEMPTED

    place = process_arguments(arguments)
    with telling_the_others(**place):
        config = load_config(arguments.config, arguments.overrides)
    if config.parallel.cpu_devices:
        from maxlm.parallel.host_memory import keep_freed_memory

        keep_freed_memory()  # before the imports below start jax
    join(**place)
    outcome = pretrain(
        config, branch_from=arguments.branch_from, live=False if arguments.plain else None
    )
    if outcome is None:
        return 0
    codes = {"finished": 0, "terminated": EXIT_PREEMPTED, "interrupted": EXIT_INTERRUPTED}
    return codes[outcome.reason]


def pretrain(
    config: RunConfig, *, branch_from: str | None = None, live: bool | None = None
) -> Outcome | None:
    """Train a config's run from where it is to its end; what `maxlm train` does.

    Where a launcher started several processes, each calls this, and they train one run together.

    Args:
        config: from `load_config`.
        branch_from: `RUN` or `RUN@STEP` whose state a new run starts from.
        live: draw in place (True), plain lines (False), or what the terminal can (None).

    Returns:
        How it ended, with the final parameters and newest records; None where the run was
        finished before.

    Raises:
        MaxLMError: something that the user can mend.
    """
    from maxlm.parallel.processes import joined

    with joined():
        from maxlm import storage
        from maxlm.lock import only_process
        from maxlm.parallel.agreement import process_index
        from maxlm.train.run_folder import RunFolder

        if process_index():  # the first process holds the folder for all
            return _pretrain(config, branch_from, live)
        folder = RunFolder(storage.join(config.output, config.name))
        busy = f"{folder.path}: another process is training in this run's folder"
        with only_process(folder.lock, busy):
            return _pretrain(config, branch_from, live)


def _pretrain(config: RunConfig, branch_from: str | None, live: bool | None) -> Outcome | None:
    from maxlm import storage
    from maxlm.evaluate.hooks import training_hooks
    from maxlm.evaluate.report import write_report
    from maxlm.parallel.agreement import process_index
    from maxlm.train.display import Display
    from maxlm.train.loop import train
    from maxlm.train.records import RecordWriter
    from maxlm.train.setup import prepare
    from maxlm.train.sinks import open_sinks

    # The first process alone speaks and writes; the others keep the newest records for the caller.
    first = process_index() == 0
    display = Display(f"{config.output}/{config.name}", live=live) if first else None
    quiet = RecordWriter([], display)
    training = prepare(config, branch_from=branch_from, message=quiet.message)
    if training.is_finished:
        quiet.message(
            f"{training.folder.path} is finished: {training.timeline.total_steps} steps; nothing "
            "to do (give another name=… for a new run, or --branch-from to go on from it)"
        )
        if first and not storage.exists(training.folder.report):  # a kill came before it
            quiet.message(f"report: {write_report([training.folder.path])}")
        quiet.close()
        return None
    if display is None:
        return train(training, training_hooks(training), quiet)
    sinks = open_sinks(
        training.folder.path,
        tensorboard=config.logging.tensorboard,
        wandb_project=config.logging.wandb_project,
    )
    page = _Page(training.folder.path, sinks, display)
    writer = RecordWriter([sinks, page], display)
    try:
        return train(training, training_hooks(training), writer)
    finally:
        writer.close()


class _Page:
    """Writes the run's page when it ends, before the display says its last line."""

    def __init__(self, run: str, sinks: Sink, display: Display):
        self._run, self._sinks, self._display = run, sinks, display

    def write(self, record: dict[str, Any]) -> None:
        if record["kind"] == "end" and record["reason"] != "failed":
            from maxlm.evaluate.report import write_report

            self._sinks.flush()
            self._display.message(f"report: {write_report([self._run])}")

    def flush(self) -> None: ...

    def close(self) -> None: ...
