"""Whatever a file or an override holds, the answer is a config or a ConfigError."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.config.load import load_config
from maxlm.config.options import all_options
from maxlm.errors import ConfigError

KEYS = st.sampled_from([option.key for option in all_options()])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["rope", "5 steps", "1e30", "-1", "0", "[]", "{}", "[local]", "&a [*a]", "!!x y"]
    ),
)
YAMLISH = st.text(alphabet="ab:-[]{}&*!?|>'\"\n\t #%@,1.e~<=\x00é", max_size=40)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(YAMLISH | st.binary(max_size=30))
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "garbage.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with contextlib.suppress(ConfigError):
        load_config(str(path))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(st.tuples(KEYS, SCALARS), max_size=4))
def test_any_override_is_taken_or_refused(pairs):
    overrides = [
        f"{key.replace('*', 'a').replace('N', '0')}={'null' if value is None else value}"
        for key, value in pairs
    ]
    with contextlib.suppress(ConfigError):
        load_config([], overrides)
