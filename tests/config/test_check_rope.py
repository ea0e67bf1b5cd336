"""Mistakes in the options of RoPE."""

import pytest

from maxlm.config.load import load_config
from maxlm.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.rope_scaling.kind=yarn"], r"rope_scaling\.original_length.* yarn needs it"),
        (
            [
                "model.rope_scaling.kind=llama3",
                "model.rope_scaling.original_length=64",
                "model.rope_scaling.slow_rotations=4",
            ],
            "4 is not less than fast_rotations 4",
        ),
        (["model.rope_fraction=0.4"], r"0\.4 of head_dim 32 is 12\.8"),
        (["model.rope_local_theta=100"], "has no effect, because no layer is local"),
        (
            ["model.rope_scaling.factor=2"],
            r"has no effect, because model\.rope_scaling\.kind is none",
        ),
        (["model.qk_norm_width=projection"], "has no effect, because model.qk_norm is false"),
        (["model.rope_pattern=[false]"], "set model.positions to none"),
        (
            [
                "model.rope_scaling.kind=longrope",
                "model.rope_scaling.original_length=64",
                "model.rope_scaling.short_factors=[1, 2]",
                "model.rope_scaling.long_factors=[1, 2]",
            ],
            "has 2 factors, but 32 rotated dims of a head have 16 frequencies",
        ),
        (
            ["model.rope_scaling.kind=longrope", "model.rope_scaling.original_length=64"],
            r"rope_scaling\.short_factors.* is not set, but longrope divides",
        ),
        (["model.rope_context=64"], r"has no effect, because model\.rope_scaling\.kind is none"),
        (["model.positions=none", "model.rope_fraction=0.5"], "model.positions is none"),
    ],
)
def test_options_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config("models/nano-4x128", overrides)
