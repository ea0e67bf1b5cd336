"""Ahead-of-time compiles for a TPU slice that need not exist, in a process of their own.

In: a config and a topology; out: a `Compiled` program, from the store on disk where this very program
was compiled before. The compiler runs in a child process, so that an abort, a kill or a lack of
memory there is an error here. Several may run at once, also of the same program.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import maxlm
from maxlm import errors
from maxlm.config.schema import RunConfig
from maxlm.data.stored_facts import StoredFacts, stored_facts
from maxlm.errors import CompileError, MaxLMError
from maxlm.plan.compiling.store import Compiled, CompileStore
from maxlm.plan.compiling.worker import flags, sources_hash, versions
from maxlm.plan.topology import Topology

# What is going on, and for how many seconds; called about once a second.
Progress = Callable[[str, float], None]

_STAGES = {
    "tracing": "tracing the step",
    "compiling": "compiling",
    "cut_short": "an earlier compile of this program was cut short; compiling anew",
}


def default_store() -> str:
    """The folder of compiled programs: `maxlm/plans` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "maxlm", "plans")


def compile_program(
    config: RunConfig,
    topology: Topology,
    *,
    store: str | None = None,
    vocab_size: int | None = None,
    progress: Progress = lambda stage, seconds: None,
) -> Compiled:
    """Compile the train step of a config for a slice.

    Args:
        config: as loaded; resolved in the child as a run resolves it.
        topology: of TPUs.
        store: folder of compiled programs; None: `default_store()`.
        vocab_size: where neither the config nor a token store tells.
        progress: told what is going on, about once a second; what it raises ends the compile.

    Returns:
        The program; `out_of_memory` is set where the compiler refused it for want of memory.

    Raises:
        ConfigError, ParallelError: the config does not fit the topology, or there is no compiler.
        CompileError: the compiler failed or was ended.
        DataError, TokenizerError: a token store that is there cannot be used.
        StorageError: the store cannot be written.
    """
    folder = str(CompileStore(store or default_store()).folder)
    request: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "topology": topology.name,
        "vocab_size": vocab_size,
        "store": folder,
    }
    request["key"] = _request_key(request, stored_facts(config.data))
    known = CompileStore(folder).hash_of_request(request["key"])
    found = CompileStore(folder).get(known) if known else None
    if found is not None:
        return found
    hash = _in_a_child(request, topology.name, progress)
    compiled = CompileStore(folder).get(hash)
    if compiled is None:
        raise CompileError(f"{folder}/{hash} vanished or is damaged; run the command again")
    return compiled


def _request_key(request: dict[str, Any], stored: StoredFacts) -> str:
    """Of a request, what its token stores tell, the code that would trace it, and the versions."""
    asked = {key: request[key] for key in ("config", "topology", "vocab_size")}
    seen = json.dumps([asked, stored, sources_hash(), versions(), flags()], sort_keys=True)
    return hashlib.sha256(seen.encode()).hexdigest()


def _in_a_child(request: dict[str, Any], topology: str, progress: Progress) -> str:
    """Run the worker; the hash that it tells at its end."""
    with tempfile.TemporaryFile() as noise:
        child = subprocess.Popen(
            [sys.executable, "-m", "maxlm.plan.compiling.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            env=_environment(),
        )
        try:
            assert child.stdin and child.stdout
            child.stdin.write(json.dumps(request).encode())
            child.stdin.close()
            last = _follow(child, child.stdout, progress)
        finally:
            if child.poll() is None:
                child.kill()
            code = child.wait()
        if "hash" in last:
            return str(last["hash"])
        if "error" in last:
            kind = getattr(errors, last["error"], MaxLMError)
            raise kind(last["message"])
        raise CompileError(_ended(code, topology, noise))


def _follow(child: subprocess.Popen[bytes], out: IO[bytes], progress: Progress) -> dict[str, Any]:
    """Tell the stages until the child closes its output; its last word on what came of it."""
    since = time.monotonic()
    last: dict[str, Any] = {}
    stage, buffered = "starting", b""
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        while True:
            progress(stage, time.monotonic() - since)
            if not selector.select(timeout=1.0):
                continue
            chunk = os.read(out.fileno(), 1 << 16)
            if not chunk:
                return last
            *lines, buffered = (buffered + chunk).split(b"\n")
            for line in lines:
                told = json.loads(line)
                if "stage" in told:
                    stage, since = _STAGES[told["stage"]], time.monotonic()
                    progress(stage, 0.0)
                else:
                    last = told


def _ended(code: int, topology: str, noise: IO[bytes]) -> str:
    """What to say of a child that ended without a word."""
    noise.seek(0)
    lines = noise.read().decode("utf-8", "replace").strip().splitlines()
    tail = "\n  ".join(lines[-8:]) or "nothing"
    how = f"with exit code {code}"
    hint = ""
    if code < 0:
        how = f"by signal {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        hint = "; where nobody did that, this machine ran out of memory (an 8B model's step takes 2 to 4 GiB)"
    return (
        f"the compile for {topology} was ended {how} before it was done{hint}; nothing of it is kept, "
        f"run the command again. Its last words:\n  {tail}"
    )


def _environment() -> dict[str, str]:
    """The child's: no accelerator of this machine is touched, the compiler may run several times."""
    package = str(Path(maxlm.__file__).resolve().parent.parent)
    paths = [package, os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
