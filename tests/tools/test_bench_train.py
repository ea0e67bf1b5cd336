"""The benchmarks of train steps: they run, say what they promise, and compare equal arithmetic."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cases import campaign

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tools"
sys.path[:0] = [str(TOOLS), str(TOOLS / "torch_peer")]


def run(tool: str, *arguments: str, code: int = 0) -> list[dict]:
    """Records that a tool prints, on one CPU device."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    del env["JAX_COMPILATION_CACHE_DIR"]  # what they measure as compiling is compiling
    command = [sys.executable, str(TOOLS / tool), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == code, done.stderr + done.stdout
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


FIELDS = [
    "side",
    "model",
    "length",
    "batch_size",
    "visible_share",
    "mesh",
    "attention",
    "rematerialization",
    "precision",
    "parameters",
    "tokens_per_second",
    "mfu",
    "mfu_formula",
    "step_seconds",
    "step_seconds_min_max",
    "compile_seconds",
    "first_step_seconds",
    "dispatch_seconds",
    "place_seconds",
    "peak_memory_bytes",
    "versions",
    "python",
    "device",
    "devices",
    "loss",
]


def test_a_tiny_case_runs_and_reports_every_field():
    (record,) = run(
        "bench_train.py", "--tiny", "--cases", "llama-1b", "--rows", "packed", "--seconds", "0.2"
    )
    assert set(FIELDS) <= set(record)
    assert record["length"] == 64 and record["rematerialization"] == "matmuls"
    assert 0 < record["visible_share"] < 1  # speeches end inside rows
    low, high = record["step_seconds_min_max"]
    assert 0 < low <= record["step_seconds"] <= high
    tokens = record["batch_size"] * record["length"]
    assert record["tokens_per_second"] == pytest.approx(tokens / record["step_seconds"], rel=1e-3)
    assert record["mfu"] is None  # a CPU has no peak to speak of
    assert record["loss"][0] == pytest.approx(np.log(257), abs=0.2)


def test_a_case_that_cannot_run_says_why_and_fails():
    (record,) = run(
        "bench_train.py", "--tiny", "--cases", "gpt2-124m", "--set", "model.num_layer=3", code=1
    )
    assert "ConfigError" in record["error"]


def test_every_case_is_of_a_preset_that_exists():
    from bench_train import CASES

    from maxlm.config.load import load_config

    for case in CASES.values():
        load_config(list(case.presets), list(case.overrides))


def test_full_rows_are_one_document_and_packed_ones_several():
    from bench_rows import make_batches, visible_share

    shape = {"length": 256, "batch_size": 4, "count": 2, "vocab_size": 257}
    full = make_batches("full", None, **shape)
    packed = make_batches("packed", None, **shape)
    for one, other in zip(full, packed, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
    assert visible_share(full) == 1
    segments = packed[0].segment_ids[0]
    counts = np.unique(segments, return_counts=True)[1]
    assert len(counts) > 1
    wanted = np.mean([c * (c + 1) / (256 * 257) for c in counts]) * len(counts)
    one_row = [packed[0]._replace(segment_ids=segments[None])]
    assert visible_share(one_row) == pytest.approx(wanted)
    with pytest.raises(ValueError, match="vocabulary is 50"):
        make_batches("full", None, **(shape | {"vocab_size": 50}))


SHAPE = {
    "vocab_size": 257,
    "num_layers": 2,
    "embed_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 64,
}
GPT = {
    "mlp": "plain",
    "activation": "gelu_tanh",
    "norm": "layer",
    "norm_bias": True,
    "positions": "learned",
    "max_length": 48,
    "attention_bias": "all",
    "mlp_bias": True,
    "num_kv_heads": 4,
}


@pytest.mark.parametrize("variant", [{"tie_embeddings": False}, GPT], ids=["llama", "gpt"])
@pytest.mark.parametrize("rows", [campaign("full"), "packed"])
def test_the_peer_computes_the_same_steps(variant, rows):
    torch = pytest.importorskip("torch")
    import jax
    import train_step
    from bench_rows import make_batches
    from decoder import Decoder
    from train_program import build

    options = [f"model.{key}={json.dumps(value)}" for key, value in (SHAPE | variant).items()]
    options += ["data.length=48", "data.batch_size=2", "train.precision=float32"]
    options += ["schedule.warmup=0 steps", "schedule.kind=cosine", "schedule.final_fraction=1.0"]
    program = build(["models/nano-4x128"], options, devices=jax.devices()[:1])
    batches = make_batches(rows, None, length=48, batch_size=2, count=3, vocab_size=257)
    state = program.fresh_state()
    config = program.config.model_dump(mode="json")
    peer = Decoder(config["model"], torch.float32)
    peer.load({name: np.asarray(value) for name, value in state.params.items()})
    step = train_step.Step(peer, config, rows == "packed", compiled=False, chunk=40)
    # Ours ramps up over the first steps; the losses before and after the first update say enough.
    ours, theirs = [], []
    with jax.set_mesh(program.mesh):
        for batch in batches:
            state, metrics = program.step(state, batch)
            ours.append(float(metrics.nll / metrics.weight))
            step.optimizer.param_groups[0]["lr"] = 3e-4 * float(metrics.rate)
            step.optimizer.param_groups[1]["lr"] = 3e-4 * float(metrics.rate)
            arrays = batch._asdict().items()
            theirs.append(float(step({name: torch.from_numpy(a) for name, a in arrays})))
    np.testing.assert_allclose(theirs, ours, rtol=2e-6)
    assert ours[0] != ours[1]


def test_a_model_that_the_peer_does_not_have_is_refused():
    torch = pytest.importorskip("torch")
    from decoder import Decoder

    with pytest.raises(SystemExit, match=r"attention_logit_cap.*50"):
        Decoder(SHAPE | {"attention_logit_cap": 50.0}, torch.float32)


@pytest.mark.campaign
def test_what_is_measured_on_a_gpu_is_planned_and_tried_at_a_tiny_size(tmp_path):
    run(
        "bench_gpu.py",
        *("--output", str(tmp_path), "--tiny", "--measure-seconds", "0.1", "--only", "gpt3-xl"),
    )
    (part,) = json.loads((tmp_path / "summary.json").read_text())
    assert part["status"] == "done"
    lines = (tmp_path / "gpt3-xl.jsonl").read_text().splitlines()
    assert [json.loads(line)["rows"] for line in lines] == ["full", "packed"]


@pytest.mark.campaign
def test_dispatch_is_measured_for_the_states_that_are_promised():
    records = run("bench_dispatch.py", "--calls", "30", "--arrays", "20")
    arrays = {record["case"]: record["arrays"] for record in records}
    # Embedding, head, final norm and 9 stacked arrays a block, AdamW's two moments, 3 counters.
    assert arrays == {"stacked": 12 * 3 + 3, "layers apart": (3 + 9 * 32) * 3 + 3, "dict of 20": 20}
    for record in records:
        times = record["dispatch_ms"]
        assert 0 < times["fast"] <= times["median"] <= times["slow"]


def test_a_part_that_runs_out_of_time_leaves_no_program_behind(tmp_path):
    from bench_gpu import Part, _run

    program = tmp_path / "part.py"
    program.write_text(
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    record = _run(Part("slow", (str(program),), 3), tmp_path, 100)
    assert record["status"] == "out of time"
    child = Path("/proc", (tmp_path / "child").read_text(), "stat")
    # Gone, or a zombie that nobody has collected yet: it holds nothing.
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.1)
