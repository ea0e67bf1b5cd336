"""A search with the real compiler: what `maxlm plan --search` does.

In: a config as loaded and a topology; out: a `SearchResult`. On GPUs, for which nothing can be compiled
here, the ranking by arithmetic is the result.
"""

from __future__ import annotations

from collections.abc import Callable

from maxlm.config.schema import RunConfig
from maxlm.plan.plan import make_plan
from maxlm.plan.result import Plan
from maxlm.plan.search.candidates import Space, find_candidates
from maxlm.plan.search.search import BUDGET_MINUTES, SearchResult, Status, search
from maxlm.plan.topology import Topology


def search_layouts(
    config: RunConfig,
    topology: Topology,
    *,
    space: Space | None = None,
    name: str = "",
    store: str | None = None,
    vocab_size: int | None = None,
    prices: str | None = None,
    compile: bool = True,
    budget_minutes: float = BUDGET_MINUTES,
    workers: int | None = None,
    progress: Callable[[Status], None] = lambda status: None,
) -> SearchResult:
    """Find the fastest layout of a run.

    Args:
        config: as loaded; its global batch, model and data stay.
        topology: where.
        space: what is varied; None: everything that changes no result.
        name: of the config, for people.
        store: folder of compiled programs, in which an interrupted search finds what it did.
        vocab_size: where neither the config nor a token store tells.
        prices: file of prices, as in `make_plan`.
        compile: False: by arithmetic also on TPUs.
        budget_minutes: by which it ends; what would not end by then is not begun.
        workers: compiles at once; None: one for each core.
        progress: told about once a second.

    Raises:
        ConfigError: the config is wrong, no layout divides or none can fit, or there is no compiler.
    """

    def measure(varied: RunConfig, told: Callable[[str, float], None]) -> Plan:
        return make_plan(
            varied,
            topology,
            name=name,
            store=store,
            vocab_size=vocab_size,
            prices=prices,
            compile=compile,
            progress=told,
        )

    candidates = find_candidates(config, topology, space, vocab_size=vocab_size)
    return search(
        candidates, measure, budget_minutes=budget_minutes, workers=workers, progress=progress
    )
