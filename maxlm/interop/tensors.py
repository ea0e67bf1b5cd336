"""Which tensors a model has in a family's files, and which places of our parameters each fills.

In: a family and a model; out: a list of `Tensor`, every parameter of ours filled exactly once. Our
arrays are those of a checkpoint: stacked over the repeats of a segment, layers in the model's order,
the vocabulary without padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from maxlm.interop.family import Family, Rule
from maxlm.interop.transforms import Piece, Shape, Transform
from maxlm.model.decoder import segment_plan
from maxlm.model.definition import ModelDefinition
from maxlm.model.parameter import ParameterInfo


@dataclass(frozen=True)
class Place:
    """Where a part of a tensor lies: in which of our arrays, at which layer (and expert) of it."""

    name: str
    index: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """One tensor of theirs.

    Attributes:
        name: in the file.
        shape: that it must have.
        places: of its parts.
        pieces: shapes of its parts.
        transform: from the one to the others.
    """

    name: str
    shape: Shape
    places: tuple[Place, ...]
    pieces: tuple[Piece, ...]
    transform: Transform


def tensors_of(family: Family, model: ModelDefinition) -> list[Tensor]:
    """All tensors of a model, rule by rule: those of one parameter stand together.

    Raises:
        AssertionError: the family's table leaves a parameter out or names it twice.
    """
    shapes = canonical_shapes(model)
    found: list[Tensor] = []
    for rule in family.rules:
        if "{layer}" in rule.theirs:
            for layer, prefix, repeat in _layers(model):
                found += _of_rule(rule, model, shapes, layer, prefix, (repeat,))
        else:
            found += _of_rule(rule, model, shapes, 0, "", ())
    filled = [place for tensor in found for place in tensor.places]
    assert len(filled) == len(set(filled)), f"{family.name} names a parameter twice"
    assert {place.name for place in filled} == set(shapes), (
        f"{family.name} leaves out {set(shapes) - {place.name for place in filled}}"
    )
    return found


def canonical_shapes(model: ModelDefinition) -> dict[str, Shape]:
    """Shapes of parameters and variables without padding of the vocabulary."""
    size = model.config.vocab_size
    assert size
    return {
        name: tuple(
            size if axis == "vocab" else dim for dim, axis in zip(i.shape, i.axes, strict=True)
        )
        for name, i in (model.parameters | model.variables).items()
    }


def _of_rule(
    rule: Rule,
    model: ModelDefinition,
    shapes: dict[str, Shape],
    layer: int,
    prefix: str,
    index: tuple[int, ...],
) -> Iterator[Tensor]:
    """The tensors of a rule in one layer: one, or one of each expert."""
    names = [prefix + name for name in rule.ours]
    if names[0] not in shapes or (rule.beside and prefix + rule.beside not in shapes):
        return
    if rule.without and prefix + rule.without in shapes:
        return
    infos = [(model.parameters | model.variables)[name] for name in names]
    stacked = len(index)
    each = "{expert}" in rule.theirs
    if (each or rule.all_experts) != (infos[0].axes[stacked : stacked + 1] == ("experts",)):
        return  # the other kind of layer: an MLP where this has experts, or the other way round
    experts = infos[0].shape[stacked] if each else 1
    for expert in range(experts):
        at = (*index, expert) if each else index
        pieces = tuple(
            _piece(info, shapes[name][len(at) :], len(at))
            for name, info in zip(names, infos, strict=True)
        )
        yield Tensor(
            rule.theirs.format(layer=layer, expert=expert),
            rule.transform.shape(pieces),
            tuple(Place(name, at) for name in names),
            pieces,
            rule.transform,
        )


def _piece(info: ParameterInfo, shape: Shape, stacked: int) -> Piece:
    inputs = [dim - stacked for dim in info.reduction_dims]
    # A head [vocab, embed] contracts its last dim and is a table here.
    leading = inputs == list(range(len(inputs)))
    return Piece(shape, len(inputs) if leading else 0)


def _layers(model: ModelDefinition) -> Iterator[tuple[int, str, int]]:
    """Of each layer: its number, the prefix of its parameters' names, its place in their stack."""
    first = 0
    for segment, (pattern, repeats) in enumerate(segment_plan(model.config)):
        for repeat in range(repeats):
            for block in range(len(pattern)):
                layer = first + repeat * len(pattern) + block
                yield layer, f"segments.{segment}.blocks.{block}.", repeat
        first += len(pattern) * repeats
