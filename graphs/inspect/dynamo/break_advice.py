"""What to write instead of what breaks a graph, by what Dynamo says of it; the first row that fits is taken.

Each row: its name, the words to look for (a regular expression over the type, explanation, context and file of the
break), what happens, what to write instead, and whether a CUDA graph of the step would be refused as well.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ostinato.graphs.inspect.dynamo.break_text import BreakText


class Advice(NamedTuple):
    """A kind of break."""

    name: str
    pattern: str
    what: str
    fix: str
    waits: bool = False
    """Whether the host waits for the device there, or the shape depends on data: a capture is refused too."""


_ON_DEVICE = "keep it a tensor: index with it, use torch.where, or write it into a static tensor and read that later"

_ADVICE = (
    Advice(
        "asked-for", r"_dynamo\.(graph_break|skip_frame|step_unsupported)", "the code asks for a break", "remove it"
    ),
    Advice(
        "disabled",
        r"torch\.compiler\.disable|wrapped with `torch\._dynamo\.disable|\bdisallow",
        "a function that torch.compile was told to leave alone is called",
        "call it before or after the step; if a kernel is why, make it an operator: torch.library.custom_op",
    ),
    Advice(
        "print",
        r"operator `print`|builtin `print`",
        "print",
        "print outside of the step, or add print to torch._dynamo.config.reorderable_logging_functions: then it runs "
        "after the graph",
    ),
    Advice(
        "logging",
        r"logging\.Logger|logging/__init__|LoggingLogger|loguru",
        "logging",
        "log outside of the step, from values it returns; or add the method to "
        "torch._dynamo.config.ignore_logging_functions",
    ),
    Advice(
        "warning",
        r"_warnings\.warn|warnings\.warn|warnings\.py",
        "warnings.warn",
        "check and warn once, where the arguments are made, not in the step",
    ),
    Advice("tolist", r"tolist", "Tensor.tolist brings all values to the host", _ON_DEVICE, True),
    Advice(
        "item",
        r"Tensor\.item|_local_scalar_dense|`item`|operator `(range|int|float|bool)` with argument types \[.*Tensor",
        "a value of a tensor is brought to the host (.item(), int(), float(), bool(), or a tensor as a bound)",
        f"{_ON_DEVICE}; a bound that is known on the host: pass it in as an int",
        True,
    ),
    Advice(
        "branch",
        r"[Dd]ata-dependent (branching|assert|jump)|attempted to jump with Tensor",
        "Python branches on the value of a tensor",
        "compute both sides and choose with torch.where, or torch.cond; a check goes outside of the step",
        True,
    ),
    Advice(
        "data-dependent-operator",
        r"Data dependent operator|non-Tensor output whose value is dependent",
        "an operator returns a Python value that depends on a tensor's (equal, allclose, item)",
        "use the form that returns a tensor: (a == b).all(), torch.isclose",
        True,
    ),
    Advice(
        "dynamic-shape",
        r"Dynamic shape operator|output shape depends on|dynamic_output_shape|data-dependent output|unbacked",
        "the shape of a result depends on values (nonzero, a boolean mask, unique, repeat_interleave, one_hot)",
        "torch.where or masked_fill over all elements; repeat_interleave(output_size=…); one_hot(num_classes=…)",
        True,
    ),
    Advice(
        "pointer", r"data_ptr|Data pointer", "the address of a tensor is used in Python", "do it outside of the step"
    ),
    Advice(
        "text-of-tensor",
        r"builtin operator `(str|repr|format)` with argument types \[.*Tensor|FORMAT_VALUE|type 'str' has no len",
        "a tensor is made into text",
        "make text of values the step returned",
        True,
    ),
    Advice(
        "numpy",
        r"numpy|ndarray",
        "NumPy that Dynamo cannot take over",
        "write it with torch (torch.linalg.norm for np.linalg.norm), or make the array before the step",
        True,
    ),
    Advice(
        "random",
        r"\brandom\.|Random\.random|manual_seed|torch\.Generator|get_rng_state|set_rng_state",
        "random numbers or their state from Python",
        "pass the noise, or the seed as a tensor, into the step; torch.rand without a generator is traced",
    ),
    Advice(
        "clock",
        r"`time\.|datetime|perf_counter|monotonic|module: time\b",
        "the clock is read",
        "take the time before and after the step",
    ),
    Advice(
        "environment",
        r"os\.environ|os\.getenv|_Environ|posix|frozen os",
        "an environment variable or the system is read",
        "read it once, when the module is loaded or the model is built",
    ),
    Advice(
        "file",
        r"`open`|TextIOWrapper|\bio\.|pathlib|`input`",
        "a file is read or written",
        "do it outside of the step",
    ),
    Advice(
        "identity",
        r"\bid\(\)|compile-time-only id|`id`|FakeId|hash\(\) value",
        "the identity of an object (id, hash) is used",
        "give the object a name or number of its own",
    ),
    Advice(
        "lock",
        r"`(_thread\.)?R?Lock`|`lock` context|threading",
        "a lock or thread is used",
        "hold the lock around the step, not within it",
    ),
    Advice(
        "profiler",
        r"profiler|record_function|nvtx|gc\.collect|sys\._getframe|inspect\.(stack|currentframe)",
        "a tool of the interpreter or profiler is called",
        "call it around the step",
    ),
    Advice(
        "context-manager",
        r"context manager|GenericContextWrapping|SETUP_WITH|BEFORE_WITH|ContextWrapping",
        "a context manager that Dynamo cannot enter, or a break inside of one",
        "enter it around the step; inside only torch's own (no_grad, autocast) are traced",
    ),
    Advice(
        "generator",
        r"[Gg]enerator|YIELD",
        "a generator function is compiled",
        "return a list or tuple; or compile the function that the generator calls",
    ),
    Advice(
        "exception",
        r"Observed exception|raised exception|EXCEPT_HANDLER|Exception",
        "an exception is raised while it is traced, or crosses the compiled region",
        "check before the step; inside, do not use exceptions for control flow",
    ),
    Advice(
        "backward",
        r"backward\(\)|requires_grad_|autograd\.grad",
        "gradients are computed or switched inside",
        "decoding needs none: run it under torch.inference_mode() and leave requires_grad alone",
    ),
    Advice(
        "script",
        r"torch\.jit|ScriptModule|TorchScript",
        "a TorchScript module is called",
        "call the module it was made from",
    ),
    Advice(
        "class",
        r"__build_class__|LOAD_BUILD_CLASS",
        "a class is defined inside",
        "define it at the top of the module",
    ),
    Advice("copy", r"deepcopy", "copy.deepcopy of a tensor", "clone() it"),
    Advice(
        "limit",
        r"recompile limit exceeded",
        "the limit of recompilations is reached",
        "see the findings of code recompile",
    ),
    Advice(
        "loop",
        r"graph break in loop",
        "a break within a loop",
        "move what breaks out of the loop",
    ),
    Advice(
        "custom-op",
        r"custom operator|fake impl|meta kernel|FakeTensor|fake tensor",
        "an operator that Dynamo cannot run on shapes alone",
        "register a fake implementation for it: torch.library.register_fake",
    ),
    Advice(
        "extension",
        r"C/C\+\+|C extension|pybind|marked as skipped|skip reason",
        "a function written in C, or one that Dynamo skips, is called",
        "call it outside of the step, or wrap it as an operator: torch.library.custom_op with register_fake",
    ),
    Advice(
        "builtin",
        r"Failed to trace builtin|Unsupported (function call|method call)|Unhandled args|Unexpected type|Missing",
        "a Python function or type that Dynamo does not know",
        "compute it before the step and pass the result in, or write it with plain lists, dicts and tensors",
    ),
)

_OTHER = Advice("other", "", "Dynamo cannot trace this", "do it outside of the step, or with tensor operations")


GENERAL = ("other", "builtin", "extension", "exception")
"""Rows that say little: at a line that has another break, it is that one that matters."""


def advice_on(text: BreakText) -> Advice:
    """The first row that fits."""
    return next((row for row in _ADVICE if re.search(row.pattern, text.text)), _OTHER)
