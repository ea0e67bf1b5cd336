"""A search with the real compiler, of a model that compiles quickly; and one by arithmetic, of GPUs."""

from __future__ import annotations

import pytest

from maxlm.config.choices import Rematerialization
from maxlm.config.load import load_config
from maxlm.plan.search.candidates import Space
from maxlm.plan.search.layouts import search_layouts
from maxlm.plan.search.report import winning_yaml
from maxlm.plan.topology import parse_topology

SMALL = [
    "model.num_layers=2",
    "model.embed_dim=256",
    "model.num_heads=8",
    "model.vocab_size=512",
    "data.length=64",
    "data.batch_size=64",
    "train.duration=1000 steps",
    "optimizer.learning_rate=3e-4",
]
SPACE = Space(policies=(Rematerialization.MATMULS,), accumulations=(1,), axes=("replica", "fsdp"))


@pytest.mark.campaign
def test_a_small_search_compiles_ranks_and_goes_on_from_its_store(tmp_path):
    config, topology = load_config(["hardware/v5e"], SMALL), parse_topology("v5e-4")
    store = str(tmp_path / "store")
    first = search_layouts(config, topology, space=SPACE, store=store, workers=2)
    assert len(first.rows) == 3
    assert first.best is not None
    assert first.best.seconds == min(row.seconds for row in first.rows)
    assert all(row.compiled.method == "compiled" for row in first.rows)

    # Replicas alone: the one sum of gradients, as arithmetic has it.
    alone = next(r for r in first.rows if r.candidate.label.startswith("replica 4"))
    sent = [
        sum(c.wire_bytes for c in p.collectives) for p in (alone.candidate.analytic, alone.compiled)
    ]
    assert sent[0] == pytest.approx(sent[1], rel=0.02)

    compiled = sum(row.compiled.compile_seconds for row in first.rows)
    again = search_layouts(config, topology, space=SPACE, store=store, workers=2)
    assert again.seconds < max(compiled, first.seconds)
    assert again.best.seconds == first.best.seconds
    assert {row.compiled.compile_seconds for row in again.rows} == {
        row.compiled.compile_seconds for row in first.rows
    }

    path = tmp_path / "best.yaml"
    path.write_text(winning_yaml(first, ["hardware/v5e"], SMALL))
    assert load_config(str(path)) == first.best.candidate.config


def test_gpus_are_searched_by_arithmetic():
    presets = ["models/gpt2-124m", "hardware/h100"]
    overrides = ["data.batch_size=512", "train.duration=1000 steps"]
    config = load_config(presets, overrides)
    space = Space(
        policies=(Rematerialization.MATMULS,), accumulations=(1,), axes=("replica", "fsdp")
    )
    result = search_layouts(config, parse_topology("h100x8"), space=space)
    assert result.best is not None
    assert result.best.compiled.method == "analytic"
    assert "by arithmetic: nothing was compiled" in winning_yaml(result, presets, overrides)
