"""AdamW against torch's, and which parameters go to which optimizer and are decayed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxlm.config.schema import ModelConfig, OptimizerConfig
from maxlm.model.definition import define
from maxlm.model.parameter import Kind, ParameterInfo
from maxlm.train.optimizer import global_norm, make_optimizer

SHAPE = {
    "vocab_size": 30,
    "vocab_multiple": 16,
    "num_layers": 2,
    "embed_dim": 8,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
    "mlp_dim": 12,
    "max_length": 10,
}
# Every kind of parameter there is: two tables, a head, biases, scales of three norms.
MODEL = ModelConfig(
    **SHAPE,
    positions="learned",
    tie_embeddings=False,
    norm="layer",
    norm_bias=True,
    qk_norm=True,
    embed_norm=True,
    attention_bias="all",
    mlp_bias=True,
)
VECTORS = re.compile(r"\.(scale|bias)$")
TABLES = {"embedding", "positions", "head"}


@pytest.fixture(scope="module")
def parameters():
    return define(MODEL).parameters


def random_like(parameters, seed, dtype=np.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=info.shape) * scale, dtype)
        for name, info in parameters.items()
    }


def updates_of(config, parameters, grads, params):
    optimizer = make_optimizer(config, parameters)
    return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(grads, params)


def test_kinds_are_what_the_names_say(parameters):
    for name, info in parameters.items():
        if name in TABLES:
            assert info.kind is (Kind.HEAD if name == "head" else Kind.EMBEDDING), name
        elif VECTORS.search(name):
            assert info.kind is Kind.VECTOR, name
        else:
            assert name.endswith(".kernel") and info.kind is Kind.MATRIX, name
    assert {info.kind for info in parameters.values()} == set(Kind)


def test_adamw_equals_torch_over_ten_steps():
    reason = "torch is what AdamW is compared with; it comes with maxlm[test] on Python 3.11"
    torch = pytest.importorskip("torch", reason=reason)
    parameters = {
        "matrix": ParameterInfo((4, 6), ("embed", "mlp"), Kind.MATRIX, ("embed",)),
        "table": ParameterInfo((5, 4), ("vocab", "embed"), Kind.EMBEDDING, ()),
        "vector": ParameterInfo((7,), ("vector",), Kind.VECTOR, ()),
    }
    config = OptimizerConfig(
        learning_rate=3e-2, beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.4
    )
    with jax.enable_x64(True):
        params = random_like(parameters, seed=0, dtype=np.float64)
        theirs = {n: torch.nn.Parameter(torch.from_numpy(np.array(p))) for n, p in params.items()}
        decayed = [p for name, p in theirs.items() if name != "vector"]
        reference = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": [theirs["vector"]], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
        )
        optimizer = make_optimizer(config, parameters)
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for step in range(10):
            grads = random_like(parameters, step + 1, np.float64, scale=0.01)
            updates, state = update(grads, state, params)
            params = {name: params[name] + updates[name] for name in params}
            for name, parameter in theirs.items():
                parameter.grad = torch.from_numpy(np.array(grads[name]))
            reference.step()
            for name, parameter in theirs.items():
                np.testing.assert_allclose(
                    params[name], parameter.detach().numpy(), rtol=1e-12, err_msg=f"{step} {name}"
                )


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_is_decoupled_and_spares_vectors_alone(parameters, kind):
    config = OptimizerConfig(
        kind=kind,
        learning_rate=3e-3,
        muon_learning_rate=0.05,
        weight_decay=0.25,
        muon_iterations=1,
    )
    with jax.enable_x64(True):
        params = random_like(parameters, seed=0, dtype=np.float64)
        grads = random_like(parameters, seed=1, dtype=np.float64)
        still = {name: jnp.zeros_like(p) for name, p in params.items()}
        moved = updates_of(config, parameters, grads, params)
        at_zero = updates_of(config, parameters, grads, still)
    for name, info in parameters.items():
        rate = 0.05 if kind == "muon" and info.kind is Kind.MATRIX else 3e-3
        decay = 0.0 if VECTORS.search(name) else 0.25
        # What the weights add to the update is their decay, whatever the gradients are.
        wanted = -rate * decay * np.asarray(params[name])
        np.testing.assert_allclose(
            moved[name] - at_zero[name], wanted, rtol=0, atol=1e-12, err_msg=name
        )


def test_muon_takes_the_matrices_and_adamw_the_rest(parameters):
    grads = random_like(parameters, seed=1)
    params = random_like(parameters, seed=0)
    muon = OptimizerConfig(
        kind="muon", learning_rate=1e-2, muon_learning_rate=1e-2, muon_iterations=1
    )
    mixed = updates_of(muon, parameters, grads, params)
    plain = updates_of(OptimizerConfig(learning_rate=1e-2), parameters, grads, params)
    for name in parameters:
        same = np.array_equal(mixed[name], plain[name])
        assert same == (name in TABLES or VECTORS.search(name) is not None), name
    state = make_optimizer(muon, parameters).init(params)
    matrices = {name for name, info in parameters.items() if info.kind is Kind.MATRIX}
    moments = {"muon": matrices, "adamw": set(parameters) - matrices}
    for group, wanted in moments.items():
        paths = jax.tree_util.tree_flatten_with_path(state[group])[0]
        names = {key.key for path, _ in paths for key in path if hasattr(key, "key")}
        assert names & set(parameters) == wanted, group


def test_muon_scales_tall_and_wide_matrices_by_their_shape(parameters):
    """Orthogonal updates of an `in × out` matrix times √max(1, out/in) (Jordan 2024)."""
    config = OptimizerConfig(
        kind="muon",
        learning_rate=1.0,
        muon_learning_rate=1.0,
        weight_decay=0.0,
        muon_iterations=12,
    )
    grads = random_like(parameters, seed=1)
    updates = updates_of(config, parameters, grads, random_like(parameters, seed=0))
    sizes = {"mlp.up.kernel": (8, 12), "mlp.down.kernel": (12, 8)}
    sizes |= {"attention.query.kernel": (8, 8), "attention.key.kernel": (8, 4)}
    sizes |= {"attention.output.kernel": (8, 8)}
    for short, (rows, columns) in sizes.items():
        scale = max(1.0, columns / rows) ** 0.5
        for layer, gradient in zip(
            np.asarray(updates[f"segments.0.blocks.0.{short}"]),
            np.asarray(grads[f"segments.0.blocks.0.{short}"]),
            strict=True,
        ):
            singular = np.linalg.svd(layer.reshape(rows, columns), compute_uv=False)
            # Muon's iteration circles around 1 and does not settle there.
            assert singular.min() / scale > 0.6 and singular.max() / scale < 1.25, short
            assert (layer * gradient).sum() < 0, short  # downhill


def test_the_global_norm_is_over_all_arrays_and_summed_wide():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=7)}
    wanted = np.sqrt(sum((value**2).sum() for value in tree.values()))
    as_float32 = {name: jnp.asarray(value, jnp.float32) for name, value in tree.items()}
    assert float(global_norm(as_float32)) == pytest.approx(wanted, rel=1e-6)
    many = {"a": jnp.ones(100_000, jnp.bfloat16)}  # bfloat16 cannot count so far
    norm = global_norm(many)
    assert norm.dtype == jnp.float32 and float(norm) == pytest.approx(100_000**0.5, rel=1e-6)
