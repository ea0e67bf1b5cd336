"""Mistakes in the options of latent attention."""

import pytest

from maxlm.config.load import load_config
from maxlm.errors import ConfigError

LATENT = ["model.kv_latent_dim=16", "model.latent_rope_dim=8"]


def test_what_fits_is_taken():
    load_config("models/nano-4x128", LATENT)
    loaded = load_config("models/nano-4x128", [*LATENT, "model.query_latent_dim=24"])
    assert loaded.model.query_latent_dim == 24


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.kv_latent_dim=16"], r"latent_rope_dim.* is None, but latent attention turns"),
        ([LATENT[0], "model.latent_rope_dim=7"], "is 7, .* an even number below it"),
        ([LATENT[0], "model.latent_rope_dim=32"], "is 32, .* head_dim 32"),
        (["model.query_latent_dim=16"], r"is 16, but model\.kv_latent_dim is not set"),
        ([*LATENT, "model.num_kv_heads=2"], "is 2, but out of a latent every one of the 4"),
        ([*LATENT, "model.qk_norm=true"], "True does not fit latent attention .* norms of the"),
        ([*LATENT, "model.attention_bias=qkv"], "qkv does not fit latent attention"),
        ([*LATENT, "model.rope_fraction=0.5"], "which turns latent_rope_dim of a head"),
    ],
)
def test_options_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config("models/nano-4x128", overrides)
