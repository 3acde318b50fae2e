"""What one ATen call moves and computes at least: bytes read, bytes written, floating-point operations. From shapes.

A view moves nothing; an expanded dimension is read once; a gather reads the rows it takes and no others; an in-place
operation writes its target, and reads it unless it overwrites it. Operations are counted by
``torch.utils.flop_counter``'s formulas (products, convolutions, attention), others as 0. Caches are not modelled: a
tensor that two operations read is counted twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_OVERWRITE = {"copy_", "fill_", "zero_", "normal_", "uniform_", "exponential_", "random_", "bernoulli_"}
_GATHER = {"embedding", "index_select", "index", "gather", "take", "take_along_dim"}
"""Read of their first tensor as much as they return."""
_SCATTER = {
    "index_put_",
    "_index_put_impl_",
    "index_copy_",
    "scatter_",
    "index_fill_",
    "masked_fill_",
    "masked_scatter_",
}
"""Write of their first tensor as much as they are given."""
_ALLOCATE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}


class Traffic(NamedTuple):
    """Bytes."""

    read: int
    written: int


def tensors_in(*values: Any) -> list[Tensor]:
    """The tensors anywhere in ``values``, in order."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def touched_bytes(tensor: Tensor) -> int:
    """Bytes of the distinct elements of ``tensor``: those of an expanded dimension count once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or not size else 1
    return min(count * tensor.element_size(), tensor.untyped_storage().nbytes())


def is_view(op: torch._ops.OpOverload, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether the call only looked at memory in another way: it wrote nothing, and all it returns is its inputs'."""
    if op._schema.is_mutable or not outputs:
        return False
    known = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(tensor.untyped_storage()._cdata in known for tensor in outputs)


def traffic(op: torch._ops.OpOverload, args: Any, kwargs: Any, result: Any) -> Traffic:
    """What the call moved."""
    inputs, outputs, name = tensors_in(args, kwargs), tensors_in(result), base_name(op)
    if name in _ALLOCATE or is_view(op, inputs, outputs):
        return Traffic(0, 0)
    targets = written_arguments(op, args, kwargs)
    if name in _SCATTER:
        given = sum(touched_bytes(tensor) for tensor in inputs[1:])
        return Traffic(given, _scattered(inputs, given))
    overwritten = name in _OVERWRITE or any(argument.is_out for argument in op._schema.arguments)
    sources = [t for t in inputs if not (overwritten and any(t is target for target in targets))]
    read = sum(touched_bytes(tensor) for tensor in sources)
    if name in _GATHER and inputs and outputs:
        taken = sum(touched_bytes(tensor) for tensor in outputs)
        read += min(taken, touched_bytes(inputs[0])) - touched_bytes(inputs[0])
    own = {target.untyped_storage()._cdata for target in targets}
    fresh = [tensor for tensor in outputs if tensor.untyped_storage()._cdata not in own]
    return Traffic(read, sum(touched_bytes(tensor) for tensor in [*targets, *fresh]))


@lru_cache(maxsize=1)
def formulas() -> tuple[Mapping[Any, Callable[..., int]], Callable[..., int]]:
    """torch's formulas by operator, and attention's. Importing them imports Triton, so not before they are used."""
    from torch.utils.flop_counter import flop_registry, sdpa_flop_count

    return flop_registry, sdpa_flop_count


def flops(op: torch._ops.OpOverload, args: Any, kwargs: Any, result: Any) -> int:
    """Floating-point operations (a multiply-add is two) by torch's own formulas; 0 where there is none."""
    registry, attention = formulas()
    if op.overloadpacket in registry:
        return int(registry[op.overloadpacket](*args, **kwargs, out_val=result))
    if base_name(op).startswith("_scaled_dot_product"):  # the CPU's, and any other backend's
        query, key, value = args[:3]
        return int(attention(query.shape, key.shape, value.shape))
    return 0


def shapes(args: Any, kwargs: Any, result: Any) -> str:
    """``[8, 64] x [64, 128] -> [8, 128]``."""
    before = " x ".join(str(list(tensor.shape)) for tensor in tensors_in(args, kwargs))
    after = ", ".join(str(list(tensor.shape)) for tensor in tensors_in(result))
    return f"{before} -> {after}".strip()


def written_arguments(op: torch._ops.OpOverload, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that the call writes in place, or into which it puts its result."""
    targets = []
    for position, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[position] if position < len(args) else None)
            targets += tensors_in(value)
    return targets


def base_name(op: torch._ops.OpOverload) -> str:
    """``mm`` of ``aten.mm.default``."""
    return str(op._schema.name).partition("::")[2]


def _scattered(inputs: Sequence[Tensor], given: int) -> int:
    """A scatter writes what it is given, never more than its target."""
    values = touched_bytes(inputs[-1]) if len(inputs) > 1 else given
    return min(values, touched_bytes(inputs[0])) if inputs else 0
