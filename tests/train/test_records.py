"""The numbers of a record by hand, and where the writer passes records on to."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import jax
import pytest

from maxlm.config.derive_model import resolve_model
from maxlm.config.duration import parse_duration
from maxlm.config.schema import ModelConfig, ParallelConfig, RunConfig
from maxlm.data.phases import build_timeline
from maxlm.model.balance import RoutingMetrics
from maxlm.model.count import count_parameters, train_flops_per_token
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh
from maxlm.train.clock import Speed
from maxlm.train.records import RecordWriter, start_record, train_record
from maxlm.train.step import StepMetrics


@pytest.fixture
def run():
    """Ten steps of 4 × 16 tokens, then ten of 2 × 32 … on two devices."""
    model = ModelConfig(num_layers=1, embed_dim=16, num_heads=2)
    config = RunConfig.model_validate(
        {
            "model": resolve_model(model, vocab_size=50, length=16),
            "data": {
                "mixture": {"text": {"store": "nowhere"}},
                "length": 16,
                "phases": [
                    {"duration": "10 steps"},
                    {"duration": "10 steps", "batch_size": 8, "length": 32},
                ],
            },
            "optimizer": {"learning_rate": 0.5},
        }
    )
    return SimpleNamespace(
        config=config,
        timeline=build_timeline(config.data, batch_size=4, total=parse_duration("20 steps")),
        mesh=make_mesh(ParallelConfig(tensor=2), jax.devices()[:2]),
        model=define(config.model),
        derived=[SimpleNamespace(key="model.vocab_size", value=50, rule="the tokenizer's")],
        loader=SimpleNamespace(summary=lambda: {"hash": "abc"}),
    )


class StoppedClock:
    """Two seconds have passed, half a second of them in evaluation."""

    elapsed = 77.0

    def __init__(self):
        self.speed = Speed()

    def split(self):
        parts = {"data_wait": 0.1, "save_wait": 0.2, "eval": 0.5}
        return {"total": 2.0, "compute": 2.0 - sum(parts.values()), **parts}


def metrics(nll=60.0, weight=40.0, size=30.0, grad_norm=1.0, param_norm=2.0, skipped=0, rate=1.0):
    return StepMetrics(nll, weight, size, grad_norm, param_norm, skipped, rate)


def test_a_train_record_has_means_over_its_targets_and_the_newest_norms(run):
    window = [
        metrics(60, 40, 30),
        metrics(100, 60, 70, grad_norm=3.0, param_norm=4.0, skipped=1, rate=0.5),
    ]
    record = train_record(run, 6, window, StoppedClock())
    assert record["kind"] == "train" and record["step"] == 6
    assert record["tokens"] == 6 * 4 * 16
    assert record["loss"] == pytest.approx(160 / 100)  # no mean of means
    assert record["bits_per_byte"] == pytest.approx(160 / math.log(2) / 100)
    assert (record["grad_norm"], record["param_norm"], record["skipped_steps"]) == (3.0, 4.0, 1)
    assert record["learning_rate"] == pytest.approx(0.25)  # half of a peak of 0.5
    json.dumps(record)


def test_a_train_record_of_experts_has_the_mean_of_the_steps(run):
    window = [
        metrics()._replace(routing=RoutingMetrics(2.0, 0.5, 1.5, 3.0, 0.0)),
        metrics()._replace(routing=RoutingMetrics(1.0, 0.9, 1.1, 5.0, 0.1)),
    ]
    record = train_record(run, 6, window, StoppedClock())
    wanted = {
        "expert_load_max": 1.5,
        "expert_load_min": 0.7,
        "load_balance_loss": 1.3,
        "router_z_loss": 4.0,
        "dropped_fraction": 0.05,
    }
    assert {name: record[name] for name in wanted} == pytest.approx(wanted)
    assert not wanted.keys() & train_record(run, 6, [metrics()], StoppedClock()).keys()


def test_the_speed_of_a_train_record_leaves_evaluation_out(run, monkeypatch):
    monkeypatch.setattr("maxlm.train.records._peak_tflops", lambda device: 0.001)
    record = train_record(run, 6, [metrics()] * 2, StoppedClock())
    per_second = 2 * 4 * 16 / 1.5
    assert record["tokens_per_second"] == pytest.approx(per_second)
    assert record["tokens_per_second_per_device"] == pytest.approx(per_second / 2)
    assert record["step_seconds"] == pytest.approx(1.5 / 2)
    tflops = per_second / 2 * train_flops_per_token(run.config.model, 16) / 1e12
    assert record["tflops_per_device"] == pytest.approx(tflops)
    assert record["mfu"] == pytest.approx(tflops / 0.001)
    parts = ("compute_seconds", "data_wait_seconds", "save_wait_seconds", "eval_seconds")
    assert sum(record[part] for part in parts) == pytest.approx(2.0)
    assert record["elapsed_seconds"] == 77.0
    assert record["host_memory_bytes"] > 10_000_000


def test_a_device_without_a_known_peak_has_no_mfu(run):
    record = train_record(run, 6, [metrics()], StoppedClock())
    assert record["mfu"] is None and record["tflops_per_device"] > 0


def test_steps_of_two_phases_in_one_record_count_their_own_tokens(run):
    clock = StoppedClock()
    record = train_record(run, 12, [metrics()] * 4, clock)  # steps 9 and 10, then 11 and 12
    assert record["tokens"] == 10 * 4 * 16 + 2 * 8 * 32
    assert record["tokens_per_second"] == pytest.approx((2 * 4 * 16 + 2 * 8 * 32) / 1.5)


def test_steps_without_targets_have_no_loss_and_a_bad_one_shows(run):
    empty = train_record(run, 1, [metrics(0, 0, 0)], StoppedClock())
    assert math.isnan(empty["loss"]) and math.isnan(empty["bits_per_byte"])
    bad = train_record(run, 2, [metrics(), metrics(nll=math.nan)], StoppedClock())
    assert math.isnan(bad["loss"])


def test_a_start_record_says_what_the_run_is(run):
    record = start_record(run, None)
    assert (record["kind"], record["step"], record["resumed_from"]) == ("start", 0, None)
    assert (record["devices"], record["mesh"], record["processes"]) == (2, {"tensor": 2}, 1)
    assert record["link_warnings"] == [] and record["pipeline"] is None
    assert record["parameters"] == count_parameters(run.config.model)
    assert (record["total_steps"], record["total_tokens"]) == (20, 10 * 64 + 10 * 256)
    assert record["tokens_per_step"] == 64
    assert record["flops_per_token"] == train_flops_per_token(run.config.model, 16)
    assert record["derived"] == [
        {"key": "model.vocab_size", "value": "50", "rule": "the tokenizer's"}
    ]
    assert RunConfig.model_validate(record["config"]) == run.config
    assert record["data"] == {"hash": "abc"} and record["versions"]["jax"] == jax.__version__
    json.dumps(record)


def test_a_start_record_of_a_resumed_run_speaks_of_the_phase_it_goes_on_in(run):
    record = start_record(run, 15)
    assert (record["step"], record["resumed_from"], record["tokens_per_step"]) == (15, 15, 256)
    assert record["flops_per_token"] == train_flops_per_token(run.config.model, 32)


class Recorder:
    def __init__(self, fails=False):
        self.seen, self.messages, self.closed, self.fails = [], [], 0, fails

    def write(self, record):
        self.seen.append(record)

    def message(self, text):
        self.messages.append(text)

    def close(self):
        self.closed += 1
        if self.fails:
            raise OSError("disk full")


def test_records_go_to_every_sink_and_the_display_with_the_time():
    sinks, display = [Recorder(), Recorder()], Recorder()
    writer = RecordWriter(iter(sinks), display)
    writer.write({"kind": "train", "step": 1})
    writer.write({"kind": "end", "step": 2, "time": 5.0})
    writer.message("hello")
    assert sinks[0].seen == sinks[1].seen == display.seen
    first, second = display.seen
    assert first["time"] > 1.7e9 and second["time"] == 5.0
    assert list(first) == ["time", "kind", "step"]
    assert display.messages == ["hello"] and sinks[0].messages == []


def test_the_newest_record_of_each_kind_and_evaluation_set_is_kept():
    writer = RecordWriter([], None)
    writer.message("nobody listens")
    for step in (1, 2):
        writer.write({"kind": "train", "step": step})
        writer.write({"kind": "eval", "set": "books", "step": step})
    writer.write({"kind": "eval", "set": "code", "step": 1})
    assert {name: r["step"] for name, r in writer.newest.items()} == {
        "train": 2,
        "eval books": 2,
        "eval code": 1,
    }
    writer.close()


def test_the_display_is_closed_even_when_a_sink_cannot_be():
    sink, display = Recorder(fails=True), Recorder()
    with pytest.raises(OSError, match="disk full"):
        RecordWriter([sink], display).close()
    assert (sink.closed, display.closed) == (1, 1)
