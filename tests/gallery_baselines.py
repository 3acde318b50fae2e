"""What other tools say of the gallery: the lines that ``torch._dynamo.explain`` and Inductor's cudagraph log name.

Both are run as they would be by hand: ``explain`` on one call, Inductor's own checks over the graph that AOTAutograd
hands it. On a CPU Inductor skips CUDA graphs because there is no device, before it looks at anything, so its functions
are called directly on the ATen graph; its check for tensors on the CPU says nothing here, where all of them are. Like
the log, it names the first reason of each graph and stops.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import utils as inductor_utils

Line = tuple[str, int]
_FRAME = re.compile(r'File "(.+?)", line (\d+)')


def lines_of_explain(fn: Callable[..., Any], inputs: tuple[Any, ...]) -> set[Line]:
    """Lines that ``torch._dynamo.explain`` gives as reasons of graph breaks. Empty where it raises."""
    torch.compiler.reset()
    try:
        explained = torch._dynamo.explain(fn)(*inputs)
    except Exception:  # it ends in whatever the step, or Dynamo, raises: then it names nothing
        return set()
    finally:
        torch.compiler.reset()
    frames = [frame for reason in explained.break_reasons for frame in reason.user_stack or ()]
    return {(frame.filename, int(frame.lineno or 0)) for frame in frames}


def lines_of_inductor(fn: Callable[..., Any], inputs: tuple[Any, ...]) -> set[Line]:
    """Lines that "skipping cudagraphs due to …" would name, at most one for each graph. Empty where it raises."""
    found: set[Line] = set()

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        node = inductor_utils.get_first_incompatible_cudagraph_node(graph) or _first_mutation(graph)
        frames = _FRAME.findall(str(node.meta.get("stack_trace") or "")) if node is not None else []
        found.update((file, int(line)) for file, line in frames[-1:])
        return graph.forward

    torch.compiler.reset()
    try:
        torch.compile(fn, backend=aot_autograd(fw_compiler=look, keep_inference_input_mutations=True))(*inputs)
    except Exception:  # as above: what was named before still counts
        return found
    finally:
        torch.compiler.reset()
    return found


def _first_mutation(graph: torch.fx.GraphModule) -> torch.fx.Node | None:
    """The first operation that writes into an input ("mutated inputs"): after AOTAutograd a ``copy_`` at the end."""
    for node in graph.graph.nodes:
        name = str(node.target)
        writes = node.op == "call_function" and name.split(".")[1:2] and name.split(".")[1].endswith("_")
        if writes and node.args and getattr(node.args[0], "op", "") == "placeholder":
            found: torch.fx.Node = node.args[1] if hasattr(node.args[1], "meta") else node
            return found if found.meta.get("stack_trace") else node
    return None
