"""A change of where parameters lie is seen: each shipped config against its golden file."""

import pytest

from tests.parallel.shardings import FOLDER, described, path_of, shipped


@pytest.mark.parametrize("name", shipped())
def test_every_parameter_lies_where_the_golden_file_says(name):
    assert path_of(name).read_text(encoding="utf-8") == described(name), (
        "if this change is meant: python -m tests.parallel.shardings, and review the difference"
    )


def test_there_is_no_golden_file_without_a_config():
    assert {path_of(name) for name in shipped()} == set(FOLDER.glob("*.txt"))
