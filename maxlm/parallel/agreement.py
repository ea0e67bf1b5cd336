"""What the processes of a run tell each other beside their arrays, in jax's key-value store.

`require_same` compares what must be equal on all of them; `Watch` hears what another announces;
`StopAgreement` finds the step at which all stop. On one process all of it does nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax

from maxlm.errors import ParallelError

# A process may still be opening its data while the others are ready.
PATIENCE_SECONDS = 600
# Longer than any run: jax wants a number.
_FOREVER_MS = 10 * 365 * 24 * 3600 * 1000

_serial = itertools.count()


def store() -> Any:
    """The key-value store that all processes share; None on one that is alone."""
    return _joined_state().client


def process_count() -> int:
    """Processes that have joined; unlike jax's own, it does not start the devices."""
    return _joined_state().num_processes


def process_index() -> int:
    """This process's number among them, from 0."""
    return _joined_state().process_id


def _joined_state() -> Any:
    from jax._src import distributed  # jax has no public name for it

    return distributed.global_state


def wait_for_all(what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Return when every process has called this. Raises ParallelError when some do not."""
    if process_count() == 1:
        return
    try:
        store().wait_at_barrier(f"maxlm/{what}/{next(_serial)}", int(seconds * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        text = " ".join(str(error).partition("Some timed out task names:")[2].split())
        missing = text.partition("RPC:")[0].strip()
        raise ParallelError(
            f"process {missing or '(unknown)'} did not come to '{what}' within {seconds:.0f} s"
        ) from error


def require_same(what: str, facts: Mapping[str, Any], *, hint: str = "") -> None:
    """Compare facts of all processes with the first one's, all together.

    Args:
        what: names the comparison.
        facts: JSON values by name; nested mappings are compared leaf by leaf.
        hint: what to do about a difference.

    Raises:
        ParallelError: on every process, saying which process differs in what.
    """
    if process_count() == 1:
        return
    me, shared = process_index(), store()
    key = f"maxlm/same/{what}/{next(_serial)}"
    mine = _flat(json.loads(json.dumps(facts)))
    if me == 0:
        shared.key_value_set(f"{key}/first", json.dumps(mine))
    else:
        first = json.loads(_first_process_said(f"{key}/first", f"compare {what}"))
        if different := _differences(mine, first):
            # Only who differs says so: thousands of processes agree by silence.
            shared.key_value_set(f"{key}/found/{me}", json.dumps(different))
    wait_for_all(f"compare {what}")
    found = {
        int(name.rpartition("/")[2]): json.loads(text)
        for name, text in shared.key_value_dir_get(f"{key}/found/")
    }
    if not found:
        return
    lines = [f"process {i}: {line}" for i, ls in sorted(found.items())[:4] for line in ls[:8]]
    more = f" (and {len(found) - 4} more processes)" if len(found) > 4 else ""
    raise ParallelError(
        f"the processes do not have the same {what}{more}:\n  "
        + "\n  ".join(lines)
        + (f"\n{hint}" if hint else "")
    )


def _first_process_said(key: str, what: str) -> str:
    try:
        return store().blocking_key_value_get(key, int(PATIENCE_SECONDS * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise ParallelError(
            f"process 0 did not come to '{what}' within {PATIENCE_SECONDS:.0f} s"
        ) from error


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _differences(mine: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    names = [n for n in {**first, **mine} if mine.get(n) != first.get(n)]
    return [f"{n} is {_brief(mine.get(n))}, process 0 has {_brief(first.get(n))}" for n in names]


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"


class Watch:
    """Calls `heard(text)` in a thread of its own when any process announces something on a topic."""

    def __init__(self, topic: str, heard: Callable[[str], None]):
        self._topic = topic
        self._heard = heard
        self._serial = next(_serial)
        self._thread = threading.Thread(target=self._wait, name=f"watch_{topic}", daemon=True)
        self._thread.start()

    def announce(self, text: str) -> None:
        """Tell every process, this one too. What was announced first counts."""
        for process in range(process_count()):
            # Every process waits for a key of its own, so that each can end its waiting.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                store().key_value_set(self._key(process), text)

    def close(self) -> None:
        """End the thread: one that still waits when Python ends would abort the process."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            store().key_value_set(self._key(process_index()), "")
        if threading.current_thread() is not self._thread:
            self._thread.join(10)

    def _key(self, process: int) -> str:
        return f"maxlm/watch/{self._topic}/{self._serial}/{process}"

    def _wait(self) -> None:
        # A lost connection ends the process from elsewhere.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            text = store().blocking_key_value_get(self._key(process_index()), _FOREVER_MS)
            if text:
                self._heard(text)


class StopAgreement:
    """All processes stop before the same step, though each runs ahead of its devices.

    Who is asked to stop announces it. Then the watching threads of all processes write down which
    step each is at, holding it there meanwhile; the step after the furthest is where all stop.

    Attributes:
        heard: the text that was announced first; None before.
    """

    def __init__(self) -> None:
        self.heard: str | None = None
        self._lock = threading.Lock()
        self._reached = -1
        self._stop_at: int | None = None
        self._announced = False
        self._serial = next(_serial)
        self._watch = Watch("stop", self._agree)

    def announce(self, text: str) -> None:
        """Ask all processes to stop; again: nothing."""
        if not self._announced:
            self._announced = True
            self._watch.announce(text)

    def reached(self, step: int) -> bool:
        """Whether all stop before this step; every process asks before each step, in order."""
        with self._lock:
            self._reached = step
            return self._stop_at is not None and step >= self._stop_at

    def close(self) -> None:
        """End the watching."""
        self._watch.close()

    def _agree(self, text: str) -> None:
        shared, key = store(), f"maxlm/stop_step/{self._serial}"
        patience = int(PATIENCE_SECONDS * 1000)
        with self._lock:
            shared.key_value_set(f"{key}/at/{process_index()}", str(self._reached))
            shared.wait_at_barrier(f"{key}/barrier", patience)
            if process_index() == 0:
                steps = [int(step) for _, step in shared.key_value_dir_get(f"{key}/at/")]
                shared.key_value_set(f"{key}/stop", str(max(steps) + 1))
            self.heard = text
            self._stop_at = int(shared.blocking_key_value_get(f"{key}/stop", patience))
