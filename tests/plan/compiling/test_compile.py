"""Compiles in a process of their own: kept whole or not at all, and what ends them is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

import pytest

from maxlm.config.load import load_config
from maxlm.errors import CompileError, ConfigError, ParallelError, StorageError
from maxlm.plan.compiling import compile as compile_module
from maxlm.plan.compiling.compile import compile_program
from maxlm.plan.compiling.store import Compiled, CompileStore
from maxlm.plan.reading.memory import needed_bytes
from maxlm.plan.topology import parse_topology
from tests.small_run import write_text_store


def made(store: CompileStore, text: str = "HloModule made", hash: str = "a" * 64) -> Compiled:
    entry = Compiled(hash=hash, folder="", memory={"x": 1}, out_of_memory="", seconds=1.0)
    return store.put(store.begin(hash), entry, text)


def a_dead_process() -> int:
    return int(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"]))


@pytest.mark.slow
def test_the_same_program_is_compiled_once(
    small_compiled, small_config, small_topology, store, monkeypatch
):
    assert "is_scheduled=true" in small_compiled.text[:300]
    assert small_compiled.memory["temp_size_in_bytes"] > 0 and small_compiled.seconds > 0

    def no_child(*_, **__):
        raise AssertionError("a child was started")

    monkeypatch.setattr(subprocess, "Popen", no_child)
    again = compile_program(small_config, small_topology, store=store)
    assert again == small_compiled


@pytest.mark.slow
def test_code_that_changed_traces_again_and_finds_the_program(
    small_compiled, small_config, small_topology, store, monkeypatch
):
    monkeypatch.setattr(compile_module, "sources_hash", lambda: "another")
    stages = []
    again = compile_program(
        small_config, small_topology, store=store, progress=lambda stage, _: stages.append(stage)
    )
    assert again == small_compiled
    assert "tracing the step" in stages and "compiling" not in stages


def test_a_token_store_that_was_rewritten_is_another_request(tmp_path, monkeypatch):
    keys = []

    def child(request, *_):
        keys.append(request["key"])
        raise CompileError("not here")

    monkeypatch.setattr(compile_module, "_in_a_child", child)
    for characters in (60_000, 60_000, 30_000):
        shutil.rmtree(tmp_path / "books", ignore_errors=True)
        store = write_text_store(tmp_path / "books", characters)
        config = load_config(
            ["models/nano-4x128", "hardware/v5e"], [f"data.mixture.books.store={store}"]
        )
        with pytest.raises(CompileError):
            compile_program(config, parse_topology("v5e-4"), store=str(tmp_path / "plans"))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.slow
def test_a_program_too_large_is_told_with_its_size(small_topology, store):
    pytest.importorskip("libtpu")
    sizes = ["data.batch_size=64", "data.length=8192", "train.duration=1000 steps"]
    config = load_config(["models/llama3.2-1b", "hardware/v5e"], sizes)
    refused = compile_program(config, small_topology, store=store)
    assert refused.text == "" and "RESOURCE_EXHAUSTED" in refused.out_of_memory
    assert needed_bytes(refused.out_of_memory) > small_topology.chip.usable_bytes


@pytest.mark.slow
def test_an_option_that_the_compiler_lacks_is_the_configs_mistake(small_topology, store):
    pytest.importorskip("libtpu")
    from tests.plan.conftest import SMALL

    options = [*SMALL, "parallel.compiler_options.xla_tpu_no_such_option=1"]
    config = load_config(["models/nano-4x128", "hardware/v5e"], options)
    with pytest.raises(ConfigError, match=r"compiler_options.*xla_tpu_no_such_option"):
        compile_program(config, small_topology, store=store)


@pytest.mark.slow
def test_a_mesh_that_does_not_fit_keeps_its_error(small_config, tmp_path):
    pytest.importorskip("libtpu")
    parallel = small_config.parallel.model_copy(update={"fsdp": 3})
    config = small_config.model_copy(update={"parallel": parallel})
    with pytest.raises(ParallelError, match="3"):
        compile_program(config, parse_topology("v5e-4"), store=str(tmp_path))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -9 $$", "by signal SIGKILL before it was done; where nobody did that"),
        ("echo the last words >&2; exit 134", "with exit code 134"),
        ("kill -6 $$", "SIGABRT"),
    ],
)
def test_a_child_that_ends_early_is_told(
    script, said, small_config, small_topology, tmp_path, monkeypatch
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nread request\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(CompileError) as caught:
        compile_program(small_config, small_topology, store=str(tmp_path / "store"))
    assert said in str(caught.value) and "nothing of it is kept" in str(caught.value)
    assert caught.value.exit_code == 1


def test_what_progress_raises_ends_the_compile(small_config, small_topology, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    def enough(stage, seconds):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        compile_program(
            small_config, small_topology, store=str(tmp_path / "store"), progress=enough
        )
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_is_put_in_is_found_and_damage_is_not(tmp_path):
    store = CompileStore(tmp_path)
    entry = made(store)
    assert store.get(entry.hash) == entry and entry.text == "HloModule made"
    packed = tmp_path / entry.hash / "program.txt.zst"
    packed.write_bytes(packed.read_bytes()[:-1])
    assert store.get(entry.hash) is None


def test_a_compile_that_was_cut_short_is_no_program_and_is_told(tmp_path):
    store = CompileStore(tmp_path)
    left = tmp_path / f"{'a' * 64}.unfinished-{a_dead_process()}"
    left.mkdir()
    (left / "program.txt.zst").write_bytes(b"half")
    running = store.begin("a" * 64)
    assert store.get("a" * 64) is None
    assert store.cut_short("a" * 64) == 1
    assert not left.exists() and running.exists()
    assert store.cut_short("a" * 64) == 0


def test_two_that_compile_the_same_both_get_the_one_entry(tmp_path):
    store = CompileStore(tmp_path)
    folders = [tmp_path / f"{'a' * 64}.unfinished-{n}" for n in (1, 2)]
    entry = Compiled(hash="a" * 64, folder="", memory={}, out_of_memory="", seconds=1.0)
    found, together = [], threading.Barrier(2)

    def finish(folder):
        folder.mkdir()
        together.wait()
        found.append(store.put(folder, entry, "text " * 10_000))

    threads = [threading.Thread(target=finish, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0] == found[1]
    assert [path.name for path in tmp_path.iterdir()] == ["a" * 64]


def test_a_store_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="needs a folder"):
        CompileStore(tmp_path / "file")


@pytest.mark.slow
def test_a_planner_that_is_killed_leaves_no_compile_behind(tmp_path):
    pid_file = tmp_path / "pid"
    program = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'maxlm.plan.compiling.worker'],"
        " stdin=subprocess.PIPE)\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(3); import os; os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    import time

    for _ in range(100):
        try:
            os.kill(int(pid_file.read_text()), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the worker lives on")
