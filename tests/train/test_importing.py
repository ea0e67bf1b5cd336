"""A model of another program as a run of ours, and a run as a folder of theirs."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from maxlm.data.tokenizers import load_tokenizer
from maxlm.errors import CheckpointError, ConfigError, TokenizerError
from maxlm.interop.safetensors import TensorFolder
from maxlm.train.checkpoints import Checkpoints
from maxlm.train.exporting import export_huggingface
from maxlm.train.importing import import_huggingface, import_llama2c
from maxlm.train.loading import load
from maxlm.train.run_folder import RunFolder
from tests.interop.tiny import batch_of, logits_of, write_folder
from tests.small_run import TEXT, checksums, devices, train_here, write_quick_config, write_store

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Llama with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("theirs")
    write_folder("llama3", folder)
    (folder / "tokenizer.json").write_text(_small_tokenizer())
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Theirs\n")
    return folder


@pytest.fixture(scope="module")
def imported(tiny, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "tiny"
    with devices(1):
        import_huggingface(str(tiny), str(run), length=32)
    return run


def test_an_import_is_a_run_that_loads(imported, tiny):
    with devices(1):
        trained = load(str(imported))
    assert (trained.step, trained.config.data.length, trained.config.model.max_length) == (
        0,
        32,
        64,
    )
    tokens = np.arange(20, dtype=np.int32)[None]
    logits = logits_of(trained.model, trained.params, batch_of(tokens))
    assert logits.shape == (1, 20, 97) and logits.std() > 1


def test_export_gives_every_file_back(imported, tiny, tmp_path):
    done = export_huggingface(str(imported), str(tmp_path / "out"), shard_bytes=100_000)
    out = tmp_path / "out"
    theirs, ours = TensorFolder(str(tiny)), TensorFolder(str(out))
    assert theirs.entries.keys() == ours.entries.keys()
    for name in theirs.entries:
        np.testing.assert_array_equal(theirs.read(name), ours.read(name), name)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (out / name).read_bytes() == (tiny / name).read_bytes()
    card = (out / "README.md").read_text()
    assert "license: mit" in card and f"imported from `{tiny}`" in card
    assert done.family == "llama" and "model.safetensors.index.json" not in done.files
    with devices(1):
        import_huggingface(str(out), str(tmp_path / "again"), length=32)
    first, second = RunFolder(str(imported)), RunFolder(str(tmp_path / "again"))
    assert checksums(first) == checksums(second)


@pytest.mark.parametrize(("length", "which"), [(2, "short factors"), (None, "long factors")])
def test_the_context_of_an_import_decides_the_factors_of_longrope(tmp_path, length, which):
    write_folder("phi3_128k", tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").write_text(_small_tokenizer())
    said: list[str] = []
    with devices(1):
        import_huggingface(
            str(tmp_path / "theirs"), str(tmp_path / "run"), length=length, message=said.append
        )
        model = load(str(tmp_path / "run")).config.model
    assert model.rope_context == (length or 64)
    assert which in said[1] and "--length" in said[1]


def test_an_import_lands_in_shards_and_is_the_same(imported, tiny, tmp_path):
    with devices(4):
        import_huggingface(
            str(tiny), str(tmp_path / "sharded"), overrides=["parallel.fsdp=2", "parallel.tensor=2"]
        )
    assert checksums(RunFolder(str(tmp_path / "sharded"))) == checksums(RunFolder(str(imported)))


def test_a_taken_folder_is_refused(imported, tiny):
    with pytest.raises(ConfigError, match="there is something in this folder already"):
        import_huggingface(str(tiny), str(imported))
    with pytest.raises(ConfigError, match="there is something in this folder already"):
        export_huggingface(str(imported), str(tiny))


def test_a_tokenizer_of_another_vocabulary_is_refused(tiny, tmp_path):
    with pytest.raises(TokenizerError, match=r"has 257 ids, and the model's .* is 97: fewer rows"):
        import_huggingface(str(tiny), str(tmp_path / "run"), tokenizer="byte")
    assert not (tmp_path / "run").exists()


def test_a_length_beyond_the_model_and_a_missing_tokenizer_are_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"--length 65: .* was made for 2 to 64 tokens"):
        import_huggingface(str(tiny), str(tmp_path / "run"), length=65)
    bare = tmp_path / "bare"
    write_folder("llama3", bare)
    with pytest.raises(TokenizerError, match="name the model's tokenizer with --tokenizer"):
        import_huggingface(str(bare), str(tmp_path / "run"))


def test_damaged_weights_are_refused(tiny, tmp_path):
    for path in tiny.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-10])
    with devices(1), pytest.raises(CheckpointError, match=f"{last.name}: truncated"):
        import_huggingface(str(tmp_path), str(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_that_starts_from_an_import_trains_and_exports(imported, tmp_path):
    """`train.init_from` on an import, then a model card with data and evaluation."""
    tokenizer = load_tokenizer(str(imported))
    text = TEXT.read_text()[:20_000].lower()
    store = write_store(
        tmp_path / "store", {"train": [text], "validation": [text[:4000]]}, tokenizer
    )
    model = json.loads(json.dumps(_config(imported)["model"]))
    path = write_quick_config(
        tmp_path / "run",
        store,
        model=model,
        data={"length": 32, "batch_size": 4},
        train={"duration": "4 steps", "init_from": str(imported)},
        checkpoint={"every": "4 steps"},
        eval={"every": "4 steps"},
    )
    run = train_here(path)
    done = export_huggingface(run.path, str(tmp_path / "out"), licence="apache-2.0")
    assert done.step == 4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0" in card and "| plays | 100.0% |" in card
    assert "| validation | " in card and "| tokens seen | 512 |" in card
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    transformers = pytest.importorskip("transformers", reason="it comes with maxlm[test]")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("to be")["input_ids"] == tokenizer.encode("to be")


def test_a_changed_checkpoint_is_not_exported(imported, tmp_path, monkeypatch):
    import maxlm.train.exporting as exporting

    monkeypatch.setattr(
        exporting,
        "read_on_host",
        lambda path, name: np.zeros(
            Checkpoints(RunFolder(str(imported)).checkpoints).describe(0)[name].shape, np.float32
        ),
    )
    with pytest.raises(CheckpointError, match="the stored values have changed"):
        export_huggingface(str(imported), str(tmp_path / "out"))


def test_llama2c_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "model.bin"
    for content, message in [
        (b"abc", "truncated: 3 bytes"),
        (b"ak42" + bytes(40), "version 1 or 2"),
        (np.array([8, 8, 1, 3, 1, 16, 8], np.int32).tobytes(), "no llama2.c model"),
        (
            np.array([8, 8, 1, 2, 1, 300, 8], np.int32).tobytes() + bytes(100),
            "truncated: .* needed",
        ),
    ]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            import_llama2c(str(path), str(tmp_path / "run"), tokenizer="byte")


def test_a_llama2c_file_is_the_model_that_was_written(tmp_path):
    """Written by hand from the description of the format, with RoPE's pairs side by side."""
    tensors = _written_by_hand(tmp_path / "model.bin")
    with devices(1):
        import_llama2c(str(tmp_path / "model.bin"), str(tmp_path / "run"), tokenizer="byte")
        trained = load(str(tmp_path / "run"))
    query = np.asarray(trained.params["segments.0.blocks.0.attention.query.kernel"])  # [L, D, H, C]
    rows = tensors["query"][1].reshape(2, 4, 8)  # of layer 1, by head
    np.testing.assert_array_equal(query[1, :, 1, 0], rows[1, 0])
    np.testing.assert_array_equal(query[1, :, 1, 1], rows[1, 2])
    np.testing.assert_array_equal(query[1, :, 1, 2], rows[1, 1])
    up = np.asarray(trained.params["segments.0.blocks.0.mlp.up.kernel"])
    np.testing.assert_array_equal(up[0], tensors["up"][0].T)
    head = np.asarray(trained.params["head"])[:257]
    np.testing.assert_array_equal(head, tensors["head"])


def _written_by_hand(path: Path) -> dict[str, np.ndarray]:
    dim, hidden, layers, heads, kv_heads, vocab, length = 8, 12, 2, 2, 1, 257, 16
    shapes = {
        "embedding": (vocab, dim),
        "attention_norm": (layers, dim),
        "query": (layers, dim, dim),
        "key": (layers, 4, dim),
        "value": (layers, 4, dim),
        "output": (layers, dim, dim),
        "mlp_norm": (layers, dim),
        "gate": (layers, hidden, dim),
        "down": (layers, dim, hidden),
        "up": (layers, hidden, dim),
        "final_norm": (dim,),
        "angles": (length * 4,),
        "head": (vocab, dim),
    }
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    header = np.array([dim, hidden, layers, heads, kv_heads, -vocab, length], np.int32)
    path.write_bytes(header.tobytes() + b"".join(t.tobytes() for t in tensors.values()))
    return tensors


def _config(run: Path) -> dict:
    import yaml

    return yaml.safe_load((run / "config.yaml").read_text())


def _small_tokenizer() -> str:
    """Characters of English as a tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models

    letters = [chr(i) for i in range(32, 32 + 85)] + ["\n", "u", "v", "x", "y", "z", "w"]
    vocab = {"<unk>": 0, "</s>": 1}
    for letter in letters:
        vocab.setdefault(letter, len(vocab))
    built = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    built.decoder = decoders.Fuse()
    built.add_special_tokens(["<unk>", "</s>"])
    return built.to_str()
