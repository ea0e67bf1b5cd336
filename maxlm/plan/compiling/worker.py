"""The process that compiles: builds the train program for a described slice, compiles and keeps it.

In, on standard input: one JSON object with the config, the topology's name and the store's folder. Out,
on standard output: one JSON object a line, what is going on (`stage`) and last what came of it
(`hash`, or `error` with its type). Whatever the compiler prints goes to standard error. Nobody calls this but
`maxlm.plan.compiling.compile`: a compiler that aborts, or a machine that kills it, ends this process alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maxlm.errors import CompileError, ConfigError, MaxLMError

# Rooms and files whose code decides what is traced.
_TRACED = ("batch.py", "config", "parallel", "kernels", "model", "train")
_TRACED_HERE = ("compiling/program.py", "resolving.py", "topology.py")
Say = Callable[..., None]


def main() -> None:
    """Read the request, compile, tell."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**fields: Any) -> None:
        print(json.dumps(fields), file=out, flush=True)

    try:
        say(hash=work(json.load(sys.stdin), say))
    except MaxLMError as error:
        say(error=type(error).__name__, message=str(error))


def _end_with_parent(parent: int) -> None:
    """A planner that was killed leaves no compile behind."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def work(request: dict[str, Any], say: Say) -> str:
    """Compile what a request asks for, unless it is in the store; returns the program's hash.

    Raises:
        ConfigError, ParallelError: the config does not fit the topology, or there is no compiler.
        CompileError: the compiler failed otherwise.
        StorageError: the store cannot be written.
    """
    from maxlm.config.schema import RunConfig
    from maxlm.plan.compiling.program import build_program
    from maxlm.plan.compiling.store import Compiled, CompileStore
    from maxlm.plan.topology import parse_topology

    store = CompileStore(request["store"])
    topology = parse_topology(request["topology"])
    config = RunConfig.model_validate(request["config"])
    say(stage="tracing")
    program = build_program(config, topology.devices(), vocab_size=request["vocab_size"])
    lowered = program.lower()
    options = {k: str(v) for k, v in program.config.parallel.compiler_options.items()}
    hash = program_hash(lowered.as_text(), options, request["topology"])
    if store.get(hash) is None:
        if cut := store.cut_short(hash):
            say(stage="cut_short", count=cut)
        unfinished = store.begin(hash)
        say(stage="compiling", hash=hash)
        start = time.perf_counter()
        memory, text, refused = compiled_parts(lowered)
        compiled = Compiled(
            hash=hash,
            folder=str(unfinished),
            memory=memory,
            out_of_memory=refused,
            seconds=time.perf_counter() - start,
            versions=versions(),
            sources=sources_hash(),
        )
        store.put(unfinished, compiled, text)
    store.remember_request(request["key"], hash)
    return hash


def compiled_parts(lowered: Any) -> tuple[dict[str, int], str, str]:
    """Bytes by kind, the program's text, and the refusal for want of memory (then the rest is empty).

    Raises:
        ConfigError: the compiler refuses an option of `parallel.compiler_options`.
        CompileError: it fails otherwise.
    """
    import jax

    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" in text:
            return {}, "", text
        if "No such compile option" in text or "INVALID_ARGUMENT: While setting option" in text:
            reason = text.partition("INVALID_ARGUMENT: ")[2] or text
            raise ConfigError(
                f"parallel.compiler_options: the TPU compiler refuses: {reason}"
            ) from error
        raise CompileError(f"the TPU compiler failed: {text}") from error
    analysis = compiled.memory_analysis()
    names = [name for name in dir(analysis) if re.fullmatch(r"\w+_in_bytes", name)]
    return {name: int(getattr(analysis, name)) for name in names}, compiled.as_text(), ""


def program_hash(text: str, options: dict[str, str], topology: str) -> str:
    """SHA-256 of everything that the compiler sees: program, options, topology, versions, flags."""
    named = {k: v for k, v in versions().items() if k != "maxlm"}
    seen = json.dumps([options, topology, named, flags()], sort_keys=True)
    return hashlib.sha256(f"{seen}\n{text}".encode()).hexdigest()


def flags() -> list[str]:
    """What the environment tells the compiler."""
    names = ("LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_OPTIMIZATION_LEVEL")
    return [os.environ.get(name, "") for name in names]


def versions() -> dict[str, str]:
    """Of everything that decides the program."""
    found = {}
    for package in ("jax", "jaxlib", "libtpu", "maxlm"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def sources_hash() -> str:
    """SHA-256 of the code that decides what is traced."""
    package = Path(__file__).resolve().parents[2]
    paths = [package / "plan" / name for name in _TRACED_HERE]
    for name in _TRACED:
        room = package / name
        paths += sorted(room.rglob("*.py")) if room.is_dir() else [room]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
