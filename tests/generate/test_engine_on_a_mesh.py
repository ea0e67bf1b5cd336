"""An engine on a mesh answers as on one device, fewer requests than devices too."""

import jax
import pytest

from maxlm.config.choices import Precision, Quantization
from maxlm.config.schema import ModelConfig, ParallelConfig, RunConfig, TrainConfig
from maxlm.generate.engine import Engine
from maxlm.generate.rows import Programs
from maxlm.model.definition import define
from maxlm.model.inference import for_inference
from maxlm.parallel.mesh import make_mesh
from maxlm.train.execution import execution_of
from tests.cases import campaign
from tests.generate.models import BASE, CONTEXT, answers, engine_of, model_of, prompts_of

LAYOUTS = [
    {"replica": 8, "fsdp": 1},
    {"replica": 2, "fsdp": 2, "context": 2},
    {"fsdp": 2, "tensor": 4},
]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("count", [2, campaign(8)])
def test_as_on_one_device(layout, count):
    model, params = model_of("learned positions")
    prompts = prompts_of(*range(3, 3 + count))
    mesh = make_mesh(ParallelConfig(**layout))
    spread = jax.device_put(params, model.shardings(mesh))
    engine = Engine(Programs(model, 16), spread, context_length=CONTEXT, max_rows=8)
    assert answers(engine, prompts, 5) == answers(engine_of("learned positions"), prompts, 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Quantization.INT8, campaign(Quantization.FP8)])
def test_experts_in_8_bits_spread_over_a_mesh(kind):
    model, params = model_of("experts")
    prompts = prompts_of(4, 7, 9)
    wanted = answers(
        Engine.of(*for_inference(model, params, kind), context_length=CONTEXT), prompts, 5
    )
    mesh = make_mesh(ParallelConfig(fsdp=2, expert=2, tensor=2))
    spread = jax.device_put(params, model.shardings(mesh))
    engine = Engine.of(*for_inference(model, spread, kind), context_length=CONTEXT)
    assert answers(engine, prompts, 5) == wanted


@pytest.mark.slow
def test_layer_by_layer_and_through_the_stages_of_a_pipeline():
    config = ModelConfig(**(BASE | {"num_layers": 4}))
    prompts = prompts_of(4, 7)
    plain, alone = define(config), make_mesh(ParallelConfig(), jax.devices()[:1])
    with jax.set_mesh(alone):
        params = plain.init(3, alone)
    served, apart = for_inference(plain, params)
    assert len(served.parameters) > len(plain.parameters)  # a CPU reads layers one by one
    wanted = answers(Engine.of(served, apart, context_length=CONTEXT), prompts, 5)

    parallel = ParallelConfig(stage=2, fsdp=2)
    mesh = make_mesh(parallel, jax.devices()[:4])
    train = TrainConfig(precision=Precision.FLOAT32)
    run = RunConfig(model=config, parallel=parallel, train=train)
    staged = define(config, execution_of(run, mesh))
    moved = {name: staged.to_stage_order(name, array) for name, array in params.items()}
    spread = jax.device_put(moved, staged.shardings(mesh))
    engine = Engine.of(*for_inference(staged, spread), context_length=CONTEXT)
    assert answers(engine, prompts, 5) == wanted
