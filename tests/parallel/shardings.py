"""Where each parameter of each shipped config lies, as text to be reviewed.

python -m tests.parallel.shardings     # write tests/parallel/shardings/*.txt anew
"""

from __future__ import annotations

from pathlib import Path

from jax.sharding import AbstractMesh, AxisType

from maxlm.config.choices import Precision
from maxlm.config.derive_model import longest_length, resolve_model
from maxlm.config.load import load_config
from maxlm.config.mesh_axes import MESH_AXES, product_of
from maxlm.config.presets import preset_names
from maxlm.config.schema import RunConfig
from maxlm.model.definition import define
from maxlm.parallel.mesh import mesh_sizes
from maxlm.plan.pods import topology_in_name
from maxlm.train.execution import execution_of

FOLDER = Path(__file__).parent / "shardings"
# Models alone are laid over a mesh that splits them both ways, runs over the devices that their name
# or config says.
MODEL_MESH = ["parallel.fsdp=4", "parallel.tensor=2"]
ROWS_MESH = ["parallel.fsdp=8"]  # of models whose key-value heads do not divide by two
EXPERT_MESH = ["parallel.fsdp=2", "parallel.expert=2", "parallel.tensor=2"]
BYTES = 257  # vocabulary of configs that leave it to the tokenizer


def described(name: str) -> str:
    """The mesh of a config, then a line for each parameter: name, shape, mesh axes by dim."""
    config = load_config(name, [])
    if name.startswith("models/"):
        config = load_config(name, mesh_of(config))
    pod = topology_in_name(name)
    devices = pod.num_devices if pod else config.parallel.cpu_devices or 8
    sizes = mesh_sizes(config.parallel, devices)
    mesh = AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    model = define_model(config)
    lines = [f"# {name} on {devices} devices: {product_of(dict(mesh.shape))}"]
    arrays = model.parameters | model.variables
    for parameter, place in model.shardings(mesh).items():
        shape = " × ".join(str(size) for size in arrays[parameter].shape)
        spec = ", ".join(_axes(entry, dict(mesh.shape)) for entry in place.spec)
        lines.append(f"{parameter}  [{shape}]  ({spec})")
    return "\n".join(lines) + "\n"


def mesh_of(config: RunConfig) -> list[str]:
    """The mesh that a model alone is laid over."""
    if (config.model.num_kv_heads or config.model.num_heads) % 2:
        return ROWS_MESH
    return EXPERT_MESH if config.model.num_experts else MODEL_MESH


def define_model(config: RunConfig):
    """The model of a config whose vocabulary and precision may be open."""
    vocabulary = config.model.vocab_size or BYTES
    model = resolve_model(config.model, vocab_size=vocabulary, length=longest_length(config.data))
    update = {"train": config.train.model_copy(update={"precision": Precision.FLOAT32})}
    return define(model, execution_of(config.model_copy(update=update)))


def _axes(entry: str | tuple[str, ...] | None, sizes: dict[str, int]) -> str:
    """Mesh axes of a dim, those of size 1 left out."""
    axes = (entry,) if isinstance(entry, str) else entry or ()
    return "·".join(axis for axis in axes if sizes[axis] > 1) or "-"


def shipped() -> list[str]:
    """Every shipped config that has a model."""
    return [name for name in preset_names() if name.startswith(("models/", "runs/"))]


def path_of(name: str) -> Path:
    """The golden file of a config."""
    return FOLDER / f"{name.replace('/', '-')}.txt"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.txt"):
        old.unlink()
    for config_name in shipped():
        path_of(config_name).write_text(described(config_name), encoding="utf-8")
        print(path_of(config_name))
