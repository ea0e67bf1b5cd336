"""Options that this machine's compiler does not know are found before anything is compiled with them."""

from __future__ import annotations

import pytest

from maxlm.errors import ConfigError
from maxlm.parallel.compiler_options import check_compiler_options, refused_options

GOOD = {"xla_cpu_enable_fast_math": False}


def test_options_that_the_compiler_knows_are_not_refused():
    assert refused_options({}) == refused_options(GOOD) == {}
    check_compiler_options(GOOD)


def test_one_that_it_does_not_know_is_named_and_no_other():
    options = GOOD | {"xla_tpu_scoped_vmem_limit_kib": 65536}
    assert list(refused_options(options)) == ["xla_tpu_scoped_vmem_limit_kib"]
    message = r"compiler for cpu refuses:\s+parallel.compiler_options.xla_tpu_scoped.*: No such"
    with pytest.raises(ConfigError, match=message):
        check_compiler_options(options)


def test_a_value_of_the_wrong_kind_is_refused_too():
    with pytest.raises(ConfigError, match="xla_cpu_enable_fast_math"):
        check_compiler_options({"xla_cpu_enable_fast_math": "perhaps"})
