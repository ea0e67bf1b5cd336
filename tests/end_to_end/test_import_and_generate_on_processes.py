"""Two processes import a model, each its shards, and generate from it together, as one does."""

import json

import pytest

from maxlm.train.checkpoints import Checkpoints
from tests.generate.chat_model import write_chat_model
from tests.small_run import FLAGS, call, maxlm

QUICK = {"XLA_FLAGS": FLAGS}
ASKED = [
    {"prompt": "The cat", "temperature": 0},
    {"prompt": "A", "temperature": 1.5, "seed": 4},
    {"prompt": "hello there", "temperature": 1.0, "seed": 5, "max_tokens": 3},
]


@pytest.mark.slow
def test_two_processes_import_and_answer_as_one_does(tmp_path):
    theirs, asked = tmp_path / "theirs", tmp_path / "asked.jsonl"
    write_chat_model(theirs)
    asked.write_text("\n".join(map(json.dumps, ASKED)))
    told, sums = [], []
    for name in ("one", "two"):
        run, answered = tmp_path / name, tmp_path / f"{name}.jsonl"
        importing = ["import", "hf", str(theirs), "--output", str(run)]
        files = ["--input", str(asked), "--output", str(answered)]
        generating = ["generate", str(run), *files, "--max-tokens", "6"]
        if name == "one":
            assert call(*importing) == call(*generating) == 0
        else:
            launched = ["launch", "local", "--processes", "2", "--logs", str(tmp_path / "logs")]
            maxlm(*launched, "--", *importing, "parallel.fsdp=2", **QUICK)
            maxlm(*launched, "--", *generating, **QUICK)
        told.append([json.loads(line) for line in answered.read_text().splitlines()])
        records = Checkpoints(str(run / "checkpoints")).describe(0)
        sums.append({key: record.checksum for key, record in records.items()})
    assert sums[0] == sums[1] and len(sums[0]) > 10
    assert told[0] == told[1]
    assert [t["num_tokens"] for t in told[0]] == [6, 6, 3]
