import jax
import numpy as np
import pytest

from maxlm.config.derive_model import resolve_model
from maxlm.config.schema import ModelConfig, ParallelConfig
from maxlm.generate.generator import Generator
from maxlm.generate.sampling import SamplingOptions
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def trained():
    config = ModelConfig(num_layers=1, embed_dim=16, num_heads=2, init_std=0.5)
    model = define(resolve_model(config, vocab_size=50, length=64))
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield model, model.init(0, mesh)


def drawn(trained, length: int, context: int, count: int) -> tuple[list[int], int]:
    """Likeliest tokens after a prompt, and how often the whole text was read for them."""
    model, params = trained
    generator = Generator(model, context_length=context)
    read, reads = generator._read, []

    def counted(*arguments, **options):
        reads.append(1)
        return read(*arguments, **options)

    generator._read = counted
    prompt = np.random.default_rng(0).integers(0, 50, length).tolist()
    stream = generator.stream(
        params, [prompt], max_tokens=count, options=SamplingOptions(temperature=0)
    )
    return [int(row[0]) for row in stream], len(reads)


@pytest.mark.parametrize(("length", "count"), [(33, 16), (40, 16), (60, 4), (63, 1), (16, 32)])
def test_a_prompt_is_read_once_while_the_context_has_room(trained, length, count):
    tokens, reads = drawn(trained, length, 64, count)
    assert reads == 1
    assert tokens == drawn(trained, length, 4096, count)[0]


@pytest.mark.parametrize(
    "layout", [{"replica": 8, "fsdp": 1}, {"replica": 2, "fsdp": 2, "context": 2}]
)
def test_fewer_prompts_than_devices_are_continued_as_on_one(trained, layout):
    model, params = trained
    mesh = make_mesh(ParallelConfig(**layout))
    prompts = [[1, 2, 3], [4, 5, 6, 7]]

    def continued(params):
        options = SamplingOptions(temperature=0)
        generator = Generator(model, context_length=16)
        return np.stack(list(generator.stream(params, prompts, max_tokens=16, options=options)))

    spread = jax.device_put(params, model.shardings(mesh))
    np.testing.assert_array_equal(continued(spread), continued(params))
