"""A model's weights as generation reads them, token after token: in the type and the order it computes in.

Training keeps float32 masters and stacks repeated layers. Every token would cast the first anew, and on a
CPU, where XLA copies a layer out of its stack before a matmul reads it, move every weight twice more; and a
CPU reads a matrix whose outputs are its rows several times as fast for a few tokens (BUILD_NOTES.md has the
times). On TPU and GPU the slice is part of the matmul, and stacks and matrices stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

import jax

from maxlm.config.choices import Quantization
from maxlm.kernels.quantized import quantize, stored_dtype
from maxlm.model.decoder import segment_plan
from maxlm.model.definition import ModelDefinition, Params, define
from maxlm.model.parameter import Kind, ParameterInfo
from maxlm.model.projection import turned
from maxlm.parallel.placement import on_mesh_of


def for_inference(
    model: ModelDefinition, params: Params, quantization: Quantization | None = None
) -> tuple[ModelDefinition, Params]:
    """The same model with its matrices in the compute dtype or in 8 bits, on a CPU layer by layer.

    Args:
        model: as it was trained.
        params: its parameters and variables.
        quantization: of the linear maps of attention, MLP and experts; tables and routers stay as
            they are.

    Returns:
        A definition and its parameters; what need not change is the same array.
    """
    hardware = model.execution.hardware
    platform = hardware.platform if hardware is not None else jax.default_backend()
    apart = platform == "cpu" and model.execution.stages is None
    execution = replace(model.execution, quantization=quantization)
    if apart:
        execution = replace(execution, stacked=False, output_major=True)
    served = define(model.config, execution)
    arrays_of = served.parameters | served.variables
    scales = {n: f"{n.removesuffix('kernel')}scale" for n in arrays_of if n.endswith("kernel")}
    scales = {n: scale for n, scale in scales.items() if scale in arrays_of}
    sources = _sources(model) if apart else {name: (name, None) for name in params}
    declared = model.parameters | model.variables
    dtype = model.execution.compute_dtype

    def taken(arrays: Params) -> Params:
        made = {}
        for name, (source, layer) in sources.items():
            if source not in arrays:
                continue
            array, info = arrays[source], declared[source]
            if layer is not None:
                array = array[layer : layer + 1]
                if arrays_of[name].axes != info.axes:
                    array = turned(array, 1, len(info.inputs))
            if name in scales and quantization is not None:
                dims = arrays_of[name].reduction_dims
                made[name], made[scales[name]] = quantize(array, dims, stored_dtype(quantization))
            else:
                made[name] = array.astype(dtype) if _is_read_so(info) else array
        return made

    changed = {
        source: params[source]
        for name, (source, layer) in sources.items()
        if layer is not None
        or name in scales
        or (_is_read_so(declared[source]) and params[source].dtype != dtype)
    }
    kept = {name: params[source] for name, (source, _) in sources.items() if source not in changed}
    if not changed:
        return served, kept
    with on_mesh_of(params):
        return served, kept | jax.jit(taken)(changed)


def _is_read_so(info: ParameterInfo) -> bool:
    """Whether a matmul reads it in the compute dtype; norms, biases and routers are read as they are."""
    return info.kind in (Kind.MATRIX, Kind.HEAD, Kind.EMBEDDING) and "router" not in info.axes


def _sources(model: ModelDefinition) -> dict[str, tuple[str, int | None]]:
    """Per array of the model layer by layer: the array of the stacked one, and which layer of it."""
    names = list(model.parameters | model.variables)
    sources: dict[str, tuple[str, int | None]] = {
        name: (name, None) for name in names if not name.startswith("segments.")
    }
    layer = 0
    for i, (group, repeats) in enumerate(segment_plan(model.config)):
        for repeat in range(repeats):
            for j in range(len(group)):
                prefix = f"segments.{i}.blocks.{j}."
                for name in names:
                    if name.startswith(prefix):
                        tail = name.removeprefix(prefix)
                        sources[f"segments.{layer}.blocks.0.{tail}"] = (name, repeat)
                layer += 1
    return sources
