"""The axes of the device mesh, outermost first: what comes first sends least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MESH_AXES = ("replica", "stage", "fsdp", "context", "expert", "tensor")

# The axes that split a batch's rows.
DATA_AXES = ("replica", "fsdp", "expert")
# And those that split them outside of the layers, where the stages of a pipeline have no work of
# their own: embeddings and loss.
ROW_AXES = (*DATA_AXES, "stage")


def product_of(sizes: Mapping[str, int], *, axes: Iterable[str] = MESH_AXES) -> str:
    """Axes and their sizes in words, those of size 1 left out: `replica 2 × fsdp 4`."""
    axes = tuple(axes)
    shown = [axis for axis in axes if sizes[axis] != 1] or axes[:1]
    return " × ".join(f"{axis} {sizes[axis]}" for axis in shown)
