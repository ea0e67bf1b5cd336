"""`maxlm launch local --processes N -- train CONFIG …`: several processes on this machine."""

from __future__ import annotations

import argparse

EPILOG = """\
examples:
  maxlm launch local --processes 2 -- train runs/quickstart parallel.fsdp=2 parallel.replica=1
  maxlm launch local --processes 4 --devices-per-process 2 -- train my.yaml parallel.tensor=2
  maxlm launch local --processes 2 -- eval runs/quickstart

The first process's lines are shown, each with its number; what every process prints is kept in
files. When one dies the others are ended, and its reason and last lines are shown. SIGTERM and
Ctrl-C reach them all: the run saves, and the same command goes on from there.

exit status: the run's own: 0 finished, 75 ended by SIGTERM and 130 by Ctrl-C (run it again);
otherwise of the process that died, 128 + N where signal N killed it.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    places = parser.add_subparsers(dest="place", required=True, metavar="local")
    local = places.add_parser(
        "local",
        help="processes on this machine",
        usage="maxlm launch local --processes N [options] -- COMMAND …",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    local.add_argument("--processes", type=int, required=True, metavar="N", help="how many")
    local.add_argument(
        "--devices-per-process",
        type=int,
        default=1,
        metavar="M",
        help="CPU devices that each has, or GPUs that each takes (1)",
    )
    local.add_argument(
        "--logs", metavar="FOLDER", help="where each process's output is kept (a temporary folder)"
    )
    local.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- COMMAND …", help="what follows `maxlm`"
    )


def run(arguments: argparse.Namespace) -> int:
    """Launch."""
    from maxlm.cli.main import COMMANDS
    from maxlm.errors import ConfigError, did_you_mean
    from maxlm.launch.local import launch

    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    several = ("train", "eval", "generate", "import")
    if not command or command[0] not in several:
        name = command[0] if command else ""
        raise ConfigError(
            f"after `--` comes a command that several processes run together: {', '.join(several)}"
            + (f"; not '{name}'{did_you_mean(name, COMMANDS)}" if name else "")
        )
    return launch(
        command,
        processes=arguments.processes,
        devices_per_process=arguments.devices_per_process,
        logs=arguments.logs,
    )
