"""Training in bfloat16: what is summed over many tokens must not be summed in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np

from maxlm.batch import Batch
from maxlm.config.schema import ModelConfig, ParallelConfig
from maxlm.model.decoder import Execution
from maxlm.model.definition import define
from maxlm.parallel.mesh import make_mesh

SHAPE = {
    "vocab_size": 64,
    "num_layers": 1,
    "embed_dim": 32,
    "num_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 16,
    "mlp_dim": 64,
    "mlp": "plain",
    "activation": "gelu",
    "norm": "layer",
    "positions": "learned",
    "max_length": 32,
    "attention_bias": "all",
    "mlp_bias": True,
    "tie_embeddings": False,
}


def test_gradients_of_rows_and_biases_that_thousands_of_tokens_share_keep_their_size():
    rng = np.random.default_rng(0)
    rows, length = 512, 32
    # As in text, few tokens are most of the text: the first is a seventh of all.
    weights = 1 / np.arange(1, 65)
    tokens = rng.choice(64, (rows, length + 1), p=weights / weights.sum()).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    ones = np.ones((rows, length), np.int32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], ones.astype(np.float32), ones, positions)
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    params = define(ModelConfig(**SHAPE)).init(0, mesh)

    def gradients(dtype):
        model = define(ModelConfig(**SHAPE), Execution(compute_dtype=dtype))
        return jax.jit(jax.grad(lambda p: model.bind(p).loss(batch).total))(params)

    exact, rounded = gradients(jnp.float32), gradients(jnp.bfloat16)
    for name, wanted in exact.items():
        if name.endswith("attention.key.bias"):
            continue  # its true gradient is zero: softmax does not see what all keys share
        error = jnp.linalg.norm(rounded[name] - wanted) / jnp.linalg.norm(wanted)
        assert error < 0.02, (name, float(error))
