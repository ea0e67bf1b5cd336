"""A trained model is read back as it was saved, on the devices that there are."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest
import yaml

from maxlm.config.choices import AttentionKernel
from maxlm.config.load import load_config
from maxlm.data.rows import InMemoryTokens
from maxlm.data.windows import eval_batches
from maxlm.errors import CheckpointError, ConfigError, ParallelError
from maxlm.evaluate.perplexity import evaluate, make_eval_step
from maxlm.parallel.placement import local_rows, place_batch
from maxlm.train.canonical import canonical_targets
from maxlm.train.loading import load
from maxlm.train.setup import prepare
from tests.generate.models import continued
from tests.small_run import call, devices, write_quick_config, write_text_store


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run on two devices that keeps averaged weights, and what its checkpoints 4 and 8 hold."""
    folder = tmp_path_factory.mktemp("loading")
    config = write_quick_config(
        folder,
        write_text_store(folder / "store", 20_000),
        parallel={"fsdp": 2},
        optimizer={"average_decay": 0.5, "learning_rate": 0.01},
    )
    arrays = {}
    with devices(2):
        run = prepare(load_config(str(config), []))
        targets = canonical_targets(run.layout, run.model)
        for step in (4, 8):
            rng = np.random.default_rng(step)
            arrays[step] = {
                name: rng.normal(size=target.shape).astype(target.dtype)
                for name, target in targets.items()
            }
            state = {n: jax.device_put(a, targets[n].sharding) for n, a in arrays[step].items()}
            run.save(step, state)
        run.checkpoints.close()
    return run.folder, arrays


@pytest.fixture
def run(saved):
    return saved[0]


@pytest.fixture
def weights(saved):
    """Arrays of a step by the names that parameters have."""

    def get(step, kind):
        found = saved[1][step].items()
        return {n.removeprefix(f"{kind}."): a for n, a in found if n.startswith(f"{kind}.")}

    return get


def assert_holds(trained, arrays):
    assert trained.params.keys() == arrays.keys()
    for name, array in arrays.items():
        found = np.asarray(trained.params[name])
        np.testing.assert_array_equal(found[: len(array)], array, err_msg=name)
        assert not np.any(found[len(array) :]), name  # padding of the vocabulary


@pytest.mark.parametrize(("reference", "step"), [("", 8), ("@newest", 8), ("@4", 4)])
def test_the_averaged_weights_of_the_step_asked_for_are_loaded(run, weights, reference, step):
    with devices(2):
        trained = load(run.path + reference)
    assert trained.step == step
    assert_holds(trained, weights(step, "average"))
    assert trained.config == load_config(run.config)


def test_the_weights_themselves_are_loaded_when_no_average_is_asked_for(run, weights):
    with devices(2):
        trained = load(run.path, ["optimizer.average_decay=null"])
    arrays = weights(8, "params")
    assert_holds(trained, arrays)
    assert (arrays["embedding"] != weights(8, "average")["embedding"]).any()


@pytest.mark.parametrize(
    ("count", "mesh"),
    [
        (2, {"fsdp": 2}),  # the run's own
        (1, {}),
        (8, {"fsdp": 8}),
        (5, {"replica": 5}),  # a width of 16 does not divide
    ],
)
def test_other_devices_get_a_mesh_that_fits(run, weights, count, mesh):
    with devices(count):
        trained = load(run.path)
        assert {axis: size for axis, size in trained.mesh.shape.items() if size > 1} == mesh
        assert_holds(trained, weights(8, "average"))
        for name, place in trained.model.shardings(trained.mesh).items():
            assert trained.params[name].sharding == place


def test_a_mesh_that_is_asked_for_is_made_or_refused(run, weights):
    with devices(4):
        trained = load(run.path, ["parallel.fsdp=2", "parallel.tensor=2"])
        assert dict(trained.mesh.shape) == {
            "replica": 1,
            "stage": 1,
            "fsdp": 2,
            "context": 1,
            "expert": 1,
            "tensor": 2,
        }
        assert_holds(trained, weights(8, "average"))
        with pytest.raises(ParallelError, match="needs 2 devices, but there are 4"):
            load(run.path, ["parallel.tensor=1"])
        with pytest.raises(ParallelError, match="heads dim of 2 does not divide over 4"):
            load(run.path, ["parallel.fsdp=1", "parallel.tensor=4"])


def forced(run, folder, **parallel):
    """A copy of the run that was trained with options for other hardware."""
    copy = shutil.copytree(run.path, folder / "forced")
    saved = yaml.safe_load((copy / "config.yaml").read_text())
    saved["parallel"] |= parallel
    (copy / "config.yaml").write_text(yaml.safe_dump(saved))
    return str(copy)


def test_what_a_run_was_told_for_its_own_hardware_is_left_out_elsewhere(run, tmp_path, weights):
    options = {"xla_tpu_scoped_vmem_limit_kib": 65536, "xla_cpu_enable_fast_math": False}
    path = forced(
        run,
        tmp_path,
        attention="splash",
        expert_matmul="megablox",
        expert_exchange="all_to_all",
        compiler_options=options,
    )
    with devices(2):
        trained = load(path)
        assert_holds(trained, weights(8, "average"))
        kept = trained.config.parallel.compiler_options
        assert kept == {"xla_cpu_enable_fast_math": False}
        make_eval_step(trained.model, trained.token_bytes, kept)  # compiled when it is called
        asked = load(path, ["parallel.attention=splash"])
        assert asked.model.execution.attention is AttentionKernel.SPLASH
    with devices(2), pytest.raises(ConfigError, match=r"compiler_options\.xla_tpu_foo: No such"):
        load(run.path, ["parallel.compiler_options.xla_tpu_foo=1"])


class Spy:
    """A model that takes note of the mesh that is set when it is called, and of nothing else."""

    def __init__(self, model):
        self.model, self.config, self.meshes = model, model.config, []

    def bind(self, params):
        self.meshes.append(jax.sharding.get_abstract_mesh())
        return self.model.bind(params)


def test_a_loaded_model_leaves_no_mesh_set_and_is_used_on_its_own(run):
    def generated(trained, model):
        return continued(model, trained.params, [[72, 73]], 5)

    def evaluated(trained, model):
        rows = local_rows(4, trained.mesh)
        host = eval_batches(InMemoryTokens([np.arange(200)]), 32, 4, None, rows)
        batches = (place_batch(batch, 4, rows, trained.mesh) for batch in host)
        step = make_eval_step(model, trained.token_bytes)
        return evaluate(step, trained.params, batches)["loss"]

    assert jax.sharding.get_abstract_mesh().empty
    found = []
    for layout in (["parallel.fsdp=2", "parallel.tensor=2"], ["parallel.fsdp=4"]):
        with devices(4):
            trained = load(run.path, layout)
        spy = Spy(trained.model)
        found.append((generated(trained, spy), evaluated(trained, spy)))
        assert set(spy.meshes) == {trained.mesh.abstract_mesh} and len(spy.meshes) >= 3
        assert jax.sharding.get_abstract_mesh().empty
    (ids, loss), (again, other) = found
    assert ids == again and loss == pytest.approx(other, rel=1e-5)


def test_the_tokenizer_is_the_run_s_and_counts_its_bytes(run):
    with devices(1):
        trained = load(run.path)
        assert trained.tokenizer.decode(trained.tokenizer.encode("ROMEO: ö")) == "ROMEO: ö"
        sizes = np.asarray(trained.token_bytes)
    assert sizes.shape == (trained.config.model.vocab_size,) == (257,)
    assert sizes.sum() == 256  # the end of a document is no text


def test_a_step_that_was_not_saved_is_refused_with_those_that_were(run):
    with devices(1), pytest.raises(CheckpointError, match=r"does not exist; complete: 4, 8"):
        load(f"{run.path}@5")


@pytest.mark.slow
def test_prompts_are_continued_from_the_command_line(run, capsys):
    arguments = ["generate", run.path, "--max-tokens", "12", "--temperature", "0"]
    assert call(*arguments, "--prompt", "ROMEO:", "--prompt", "A longer prompt, ") == 0
    first, second = capsys.readouterr().out.split("—" * 8 + "\n")[:2]
    assert first.startswith("ROMEO:") and len(first) > len("ROMEO:\n")
    assert second.startswith("A longer prompt, ")
    assert call(*arguments, "--prompt", "x", "--top-p", "0") == 2
    assert "top_p is 0" in capsys.readouterr().err
