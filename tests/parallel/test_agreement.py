"""What a process says of one that does not come, played with a store that gives up at once."""

from __future__ import annotations

import jax
import pytest

from maxlm.errors import ParallelError
from maxlm.parallel import agreement


class Impatient:
    """A key-value store in which nobody else has written anything."""

    def __init__(self, text: str):
        self.text = text

    def blocking_key_value_get(self, key, milliseconds):
        raise jax.errors.JaxRuntimeError(self.text)

    def wait_at_barrier(self, key, milliseconds):
        raise jax.errors.JaxRuntimeError(self.text)


@pytest.fixture
def second_of_two(monkeypatch):
    monkeypatch.setattr(agreement, "process_count", lambda: 2)
    monkeypatch.setattr(agreement, "process_index", lambda: 1)

    def use(text: str) -> None:
        monkeypatch.setattr(agreement, "store", lambda: Impatient(text))

    return use


def test_a_first_process_that_is_late_is_named(second_of_two):
    second_of_two("DEADLINE_EXCEEDED: GetKeyValue() timed out with key: …")
    with pytest.raises(ParallelError, match="process 0 did not come to 'compare data' within 600"):
        agreement.require_same("data", {"hash": 1})


def test_a_process_that_is_late_at_a_barrier_is_named(second_of_two):
    second_of_two(
        "DEADLINE_EXCEEDED: Barrier timed out. Some timed out task names:\n/task:3\nRPC: …"
    )
    with pytest.raises(ParallelError, match="3 did not come to 'the end' within 5 s"):
        agreement.wait_for_all("the end", 5)


def test_a_lost_connection_is_no_late_process(second_of_two):
    second_of_two("UNAVAILABLE: connection reset")
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNAVAILABLE"):
        agreement.require_same("data", {"hash": 1})
