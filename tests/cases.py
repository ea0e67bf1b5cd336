"""Which cases of a test continuous integration runs, and which are left to `make campaign`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def campaign(*values: Any) -> Any:
    """A further case of a parametrized test, which `make campaign` runs."""
    return pytest.param(*values, marks=pytest.mark.campaign)


def few(cases: Iterable[Any], wanted: Callable[[Any], bool]) -> list[Any]:
    """All cases of a test of one parameter; those not wanted are left to `make campaign`."""
    return [case if wanted(case) else campaign(case) for case in cases]
