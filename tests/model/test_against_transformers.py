"""Our decoder against transformers': the same weights, logits, loss, gradients and continuations.

Tiny random models of each family are made by transformers, every parameter shaken (norms and biases
too, which start as ones and zeros and would hide a mistake), and copied by the tables below.
"""

import dataclasses
import functools
import os
import re

import jax
import numpy as np
import pytest

from maxlm.batch import Batch
from maxlm.config.schema import ModelConfig
from maxlm.generate.generator import Generator
from maxlm.generate.sampling import SamplingOptions
from maxlm.model.decoder import segment_plan
from maxlm.model.definition import define
from maxlm.model.parameter import Kind

os.environ.setdefault("HF_HUB_OFFLINE", "1")
REASON = "torch is what our models are compared with; it comes with maxlm[test] on Python 3.11"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)

VOCAB, LENGTH = 97, 24

# Our name → theirs. Names of a block are relative to its layer.
LLAMA = {
    "embedding": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "final_norm.scale": "model.norm.weight",
    "layer": "model.layers.{}.",
    "attention_norm.scale": "input_layernorm.weight",
    "attention.query.kernel": "self_attn.q_proj.weight",
    "attention.key.kernel": "self_attn.k_proj.weight",
    "attention.value.kernel": "self_attn.v_proj.weight",
    "attention.output.kernel": "self_attn.o_proj.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
    "mlp.gate.kernel": "mlp.gate_proj.weight",
    "mlp.up.kernel": "mlp.up_proj.weight",
    "mlp.down.kernel": "mlp.down_proj.weight",
}
QWEN2 = LLAMA | {
    "attention.query.bias": "self_attn.q_proj.bias",
    "attention.key.bias": "self_attn.k_proj.bias",
    "attention.value.bias": "self_attn.v_proj.bias",
}
QWEN3 = LLAMA | {
    "attention.query_norm.scale": "self_attn.q_norm.weight",
    "attention.key_norm.scale": "self_attn.k_norm.weight",
}
GEMMA2 = LLAMA | {
    "attention_post_norm.scale": "post_attention_layernorm.weight",
    "mlp_norm.scale": "pre_feedforward_layernorm.weight",
    "mlp_post_norm.scale": "post_feedforward_layernorm.weight",
}
_MIXTURE = {
    "mlp.router.kernel": "mlp.gate.weight",
    # One array of theirs holds the gates and ups of all experts; `_split` takes it apart.
    "mlp.gate.kernel": "mlp.experts.gate_up_proj.0",
    "mlp.up.kernel": "mlp.experts.gate_up_proj.1",
    "mlp.down.kernel": "mlp.experts.down_proj",
}
MIXTRAL = LLAMA | _MIXTURE
QWEN3_MOE = QWEN3 | _MIXTURE
GPT2 = {
    "embedding": "transformer.wte.weight",
    "positions": "transformer.wpe.weight",
    "final_norm.scale": "transformer.ln_f.weight",
    "final_norm.bias": "transformer.ln_f.bias",
    "layer": "transformer.h.{}.",
    "attention_norm.scale": "ln_1.weight",
    "attention_norm.bias": "ln_1.bias",
    # One matrix of theirs holds queries, keys and values; `_split` takes it apart.
    "attention.query.kernel": "attn.c_attn.weight.0",
    "attention.query.bias": "attn.c_attn.bias.0",
    "attention.key.kernel": "attn.c_attn.weight.1",
    "attention.key.bias": "attn.c_attn.bias.1",
    "attention.value.kernel": "attn.c_attn.weight.2",
    "attention.value.bias": "attn.c_attn.bias.2",
    "attention.output.kernel": "attn.c_proj.weight",
    "attention.output.bias": "attn.c_proj.bias",
    "mlp_norm.scale": "ln_2.weight",
    "mlp_norm.bias": "ln_2.bias",
    "mlp.up.kernel": "mlp.c_fc.weight",
    "mlp.up.bias": "mlp.c_fc.bias",
    "mlp.down.kernel": "mlp.c_proj.weight",
    "mlp.down.bias": "mlp.c_proj.bias",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One family: its class and settings there, its config and names here."""

    theirs: str
    settings: dict
    ours: dict
    table: dict[str, str]
    transposed: bool = True  # theirs keeps matrices as [out, in]
    norm_offset: float = 0.0  # Gemma scales by 1 + w


SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
OURS = {
    "vocab_size": VOCAB,
    "embed_dim": 48,
    "mlp_dim": 80,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 12,
    "max_length": 64,
    "tie_embeddings": False,
    "vocab_multiple": 16,
}
FAMILIES = {
    "gpt2": Family(
        "GPT2",
        {
            "vocab_size": VOCAB,
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 64,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        },
        OURS
        | {
            "num_kv_heads": 4,
            "mlp_dim": 192,
            "mlp": "plain",
            "activation": "gelu_tanh",
            "norm": "layer",
            "norm_bias": True,
            "norm_epsilon": 1e-5,
            "positions": "learned",
            "attention_bias": "all",
            "mlp_bias": True,
            "tie_embeddings": True,
        },
        GPT2,
        transposed=False,
    ),
    "llama": Family(
        "Llama",
        SHAPE | {"rope_theta": 500_000.0, "rms_norm_eps": 1e-5},
        OURS | {"rope_theta": 500_000.0, "norm_epsilon": 1e-5},
        LLAMA,
    ),
    "qwen2": Family("Qwen2", SHAPE, OURS | {"attention_bias": "qkv"}, QWEN2),
    "qwen3": Family(
        "Qwen3",
        SHAPE | {"head_dim": 20, "rope_theta": 1e6, "tie_word_embeddings": True},
        OURS | {"head_dim": 20, "rope_theta": 1e6, "tie_embeddings": True, "qk_norm": True},
        QWEN3,
    ),
    "mixtral": Family(
        "Mixtral",
        SHAPE | {"num_local_experts": 6, "num_experts_per_tok": 2, "rope_theta": 1e4},
        OURS | {"num_experts": 6, "expert_mlp_dim": 80, "load_balance_loss": 0.0},
        MIXTRAL,
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        SHAPE
        | {
            "head_dim": 20,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,  # of three layers, the second alone has experts
        },
        OURS
        | {
            "head_dim": 20,
            "qk_norm": True,
            "num_experts": 8,
            "experts_per_token": 3,
            "expert_mlp_dim": 24,
            "router_normalize": False,
            "expert_every": 2,
            "load_balance_loss": 0.0,
        },
        QWEN3_MOE,
    ),
    "gemma2": Family(
        "Gemma2",
        SHAPE
        | {
            "num_hidden_layers": 5,  # an odd number: the pattern of two leaves a remainder
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 7,
            # Caps small enough to bend what these tiny weights give.
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 3.0,
        },
        OURS
        | {
            "num_layers": 5,
            "head_dim": 16,
            "activation": "gelu_tanh",
            "norm_placement": "both",
            "attention_pattern": ["local", "global"],
            "attention_window": 7,
            "attention_logit_cap": 1.5,
            "output_logit_cap": 3.0,
            "embed_scale": 48**0.5,
            "tie_embeddings": True,
        },
        GEMMA2,
        norm_offset=1.0,
    ),
}


@functools.cache
def pair(name):
    """(family, transformers' model, our definition, our parameters)."""
    family = FAMILIES[name]
    theirs = _make_theirs(family)
    model = define(ModelConfig(**family.ours))
    weights = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    return family, theirs, model, _copied(family, model, weights, family.norm_offset)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_equal(name):
    _, theirs, model, params = pair(name)
    tokens = _tokens(3, LENGTH)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    actual = _logits(model, params, _batch(tokens, np.roll(tokens, -1, 1)))
    _assert_close(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_equal(name):
    family, theirs, model, params = pair(name)
    tokens = _tokens(2, LENGTH + 1)
    loss = theirs(torch.from_numpy(tokens), labels=torch.from_numpy(tokens)).loss
    theirs.zero_grad()
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    expected = _copied(family, model, gradients, norm_offset=0.0)
    batch = _batch(tokens[:, :-1], tokens[:, 1:])

    @jax.jit
    def mean(params):
        sums = model.bind(params).loss(batch)
        return sums.total / sums.weight

    value, actual = jax.value_and_grad(mean)(params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    assert actual.keys() == expected.keys()
    largest = max(np.abs(array).max() for array in expected.values())
    for key in expected:
        if key.endswith("attention.key.bias") and name == "gpt2":
            # Without RoPE no key bias changes a softmax: zero but for rounding, on both sides.
            assert max(np.abs(actual[key]).max(), np.abs(expected[key]).max()) < 1e-6 * largest
        else:
            _assert_close(actual[key], expected[key], key, floor=1e-3 * largest)


def test_the_load_balance_loss_is_theirs_per_expert_of_a_token():
    """Theirs counts visits per token, ours shares of all visits; of one layer they are else equal."""
    family = FAMILIES["mixtral"]
    settings = {"num_hidden_layers": 1, "router_aux_loss_coef": 0.3, "output_router_logits": True}
    ours = {"num_layers": 1, "load_balance_loss": 0.3 * 2}
    family = dataclasses.replace(
        family, settings=family.settings | settings, ours=family.ours | ours
    )
    theirs = _make_theirs(family)
    model = define(ModelConfig(**family.ours))
    tokens = _tokens(2, LENGTH + 1)
    # Both are to see the same tokens: theirs reads the last one too, as padding.
    mask = torch.ones(tokens.shape, dtype=torch.int64)
    mask[:, -1] = 0
    text = torch.from_numpy(tokens)
    out = theirs(text, attention_mask=mask, labels=text)
    out.loss.backward()
    named = dict(theirs.named_parameters())
    params = _copied(family, model, {n: p.detach().numpy() for n, p in named.items()}, 0.0)
    wanted = _copied(family, model, {n: p.grad.numpy() for n, p in named.items()}, 0.0)
    batch = _batch(tokens[:, :-1], tokens[:, 1:])

    @jax.jit
    def mean(params):
        sums = model.bind(params).loss(batch)
        return sums.total / sums.weight, sums

    (value, sums), actual = jax.value_and_grad(mean, has_aux=True)(params)
    balance = sums.routing.load_balance / sums.weight
    np.testing.assert_allclose(balance, out.aux_loss.item() / 2, rtol=1e-5)
    np.testing.assert_allclose(value, out.loss.item(), rtol=1e-5)
    name = "segments.0.blocks.0.mlp.router.kernel"
    _assert_close(actual[name], wanted[name], name)


@pytest.mark.parametrize("name", FAMILIES)
def test_documents_packed_in_a_row_are_read_as_if_alone(name):
    _, theirs, model, params = pair(name)
    lengths = (9, 3, 11)
    documents = [_tokens(1, length, seed=length) for length in lengths]
    tokens = np.concatenate([*documents, np.zeros((1, 1), np.int64)], axis=1)
    segments = np.repeat([1, 2, 3, 0], [*lengths, 1])[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in (*lengths, 1)])[None].astype(np.int32)
    batch = _batch(tokens, tokens)._replace(segment_ids=segments, positions=positions)
    actual = _logits(model, params, batch)
    with torch.no_grad():
        expected = [theirs(torch.from_numpy(d)).logits.numpy() for d in documents]
    _assert_close(actual[:, : sum(lengths)], np.concatenate(expected, axis=1))


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma2", "mixtral", "qwen3_moe"])
def test_greedy_continuations_are_equal(name):
    _, theirs, model, params = pair(name)
    prompts = [_tokens(1, length, seed=length)[0] for length in (5, 12)]
    count = 20  # past the window of local layers
    expected = [
        theirs.generate(
            torch.from_numpy(prompt[None]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=count,
            min_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    stream = Generator(model, context_length=40).stream(
        params,
        [prompt.tolist() for prompt in prompts],  # one batch, padded on the left
        max_tokens=count,
        options=SamplingOptions(temperature=0),
    )
    assert np.stack(list(stream), axis=1).tolist() == expected


def _make_theirs(family):
    config = getattr(transformers, f"{family.theirs}Config")(
        **family.settings,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    name = f"{family.theirs}{'LMHeadModel' if family.theirs == 'GPT2' else 'ForCausalLM'}"
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _copied(family, model, theirs, norm_offset):
    """Their arrays by our names, stacked over layers as ours are; every one of theirs is used."""
    theirs, used, result = _split(theirs), set(), {}
    plan = segment_plan(model.config)
    for name, info in model.parameters.items():
        inside = re.fullmatch(r"segments\.(\d+)\.blocks\.(\d+)\.(.*)", name)
        if inside is None:
            sources = [family.table[name]]
        else:
            segment, block, short = int(inside[1]), int(inside[2]), inside[3]
            first = sum(len(pattern) * repeats for pattern, repeats in plan[:segment])
            pattern, repeats = plan[segment]
            layers = [first + i * len(pattern) + block for i in range(repeats)]
            mixture = "num_experts" in family.ours and short.startswith("mlp.")
            table = LLAMA if mixture and not pattern[block].has_experts else family.table
            sources = [family.table["layer"].format(n) + table[short] for n in layers]
        used.update(sources)
        arrays = [theirs[source] for source in sources]
        if info.kind is Kind.MATRIX and family.transposed:
            arrays = [array.swapaxes(-1, -2) for array in arrays]
        array = np.stack(arrays) if inside else arrays[0]
        if name.endswith("norm.scale"):
            array = array + norm_offset
        if info.kind in (Kind.EMBEDDING, Kind.HEAD):  # vocabulary padding
            array = np.pad(array, ((0, info.shape[0] - array.shape[0]), (0, 0)))
        result[name] = np.ascontiguousarray(array.reshape(info.shape))
    assert used == set(theirs)
    return result


def _split(theirs):
    """Their parameters, with joint ones (query-key-value, gate-up) taken apart."""
    result = {}
    for name, array in theirs.items():
        if ".c_attn." in name:
            parts = np.split(array, 3, axis=-1)
            result |= {f"{name}.{i}": part for i, part in enumerate(parts)}
        elif name.endswith("gate_up_proj"):
            parts = np.split(array, 2, axis=-2)
            result |= {f"{name}.{i}": part for i, part in enumerate(parts)}
        else:
            result[name] = array
    return result


def _tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, length))


def _batch(tokens, targets):
    ones = np.ones(tokens.shape, np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return Batch(
        tokens.astype(np.int32),
        targets.astype(np.int32),
        ones.astype(np.float32),
        ones,
        positions,
    )


def _logits(model, params, batch):
    return np.asarray(jax.jit(lambda p, b: model.bind(p).logits(b))(params, batch))


def _assert_close(actual, expected, name="", floor=0.0):
    """Largest difference against the largest value: float32 sums in another order, no more."""
    scale = max(np.abs(expected).max(), floor)
    difference = np.abs(actual - expected).max() / scale
    assert difference < 1e-5, f"{name} differs by {difference:.2e} of its largest value {scale:.3g}"
