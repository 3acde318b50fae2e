"""What a finding can be, by code: one line on what goes wrong, one on what to write instead. Knows no torch.

``docs/findings.md`` has a section for each code, with a failing example and the mended one; tests run both.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """One kind of finding."""

    name: str
    what: str
    """What goes wrong on a GPU."""
    fix: str
    """What to write instead, where the place itself suggests nothing better."""

    @property
    def doc(self) -> str:
        """Where it is explained."""
        return f"docs/findings.md#{self.name}"


_ALL = (
    Code(
        "device-sync",
        "the host waits for the device, which a capture refuses (error 900)",
        "keep the value on the device, or read it after the replay",
    ),
    Code(
        "data-dependent-shape",
        "the shape of the result depends on values, so the host has to wait for it; a graph has fixed shapes",
        "compute on all elements and select with torch.where, or give the size (output_size=, num_classes=)",
    ),
    Code(
        "host-to-device",
        "a copy from host memory: refused from pageable memory, and a replay reads the same host address again",
        "fill a static tensor with copy_ before the replay",
    ),
    Code(
        "cpu-tensor",
        "a tensor on the CPU takes part: the operation fails on the device, or keeps the value of the capture",
        "make it on the device of the inputs (device=x.device), once",
    ),
    Code(
        "rng",
        "random numbers that a replay repeats, or that a capture refuses",
        "pass the noise in, or compute it from (seed, position); else register the generator with the graph",
    ),
    Code(
        "frozen-value",
        "a Python value that changes from step to step is kept as it was at capture",
        "make it a tensor that the step reads on the device, or a constant bound",
    ),
    Code(
        "graph-break",
        "torch.compile ends its graph here and goes on in Python",
        "keep what it cannot trace out of the step",
    ),
    Code(
        "recompile",
        "torch.compile compiles the function again, during the first requests",
        "keep what its guards look at constant, or mark the dimension dynamic before the first call",
    ),
    Code(
        "address-change",
        "the graph reads a tensor at the address it had at capture; the next step has it elsewhere",
        "write into the same tensor with copy_",
    ),
    Code(
        "freed-input",
        "the graph reads memory that nobody keeps alive",
        "keep a reference to the tensor for as long as the graph lives",
    ),
    Code(
        "output-overwritten",
        "the next replay writes over a tensor that is still held",
        "copy it before the next replay, or write into a tensor of your own",
    ),
    Code(
        "padding-leak",
        "what lies in a padding row changes a real row",
        "reduce over one row at a time, or mask the padding (where, not a product: 0 * NaN is NaN)",
    ),
    Code(
        "out-of-slot-write",
        "a write outside of the slots that belong to the rows",
        "send padding rows to a block of their own (a null block)",
    ),
    Code(
        "warmup-dependent",
        "the step does not do the same each time it runs, so it matters which run is captured",
        "initialise before the first run",
    ),
    Code(
        "python-side-effect",
        "Python that runs at capture and never at replay",
        "do it outside of the step",
    ),
    Code(
        "late-compile",
        "something is compiled or tuned after the warm-up: during a capture it is refused, later a request waits",
        "run every size and variant once before the capture",
    ),
)

CODES: dict[str, Code] = {code.name: code for code in _ALL}
