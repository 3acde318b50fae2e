"""Data as the tool writes it, of the size of a real step: 28 layers with the names and shapes of Qwen3-0.6B."""

from __future__ import annotations

import zlib
from typing import Any

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD, VOCABULARY = 1024, 3072, 16, 8, 128, 151_936
BANDWIDTH, RATE = 4.0e12, 7.0e14
MODEL, STEP = "/src/project/models/qwen3.py", "/src/project/step.py"
ENVIRONMENT = {
    "ostinato": "0.1.0", "torch": "2.13.0", "triton": "3.7.1", "python": "3.11.9", "system": "Linux x86_64",
    "cpu": "AMD EPYC 7R13, 2 cores", "threads": 2, "device": "cpu", "cuda": None,
}  # fmt: skip
ON_GPU = ENVIRONMENT | {"device": "NVIDIA H200", "cuda": "13.0", "read_bandwidth": BANDWIDTH, "matrix_rate": RATE}

# (operator, kernel, line of the model, api, width of what is read and written for a row, weight elements, module)
_NORM = (
    ("aten.pow.Tensor_Scalar", "vectorized_elementwise_kernel", 0),
    ("aten.mean.dim", "reduce_kernel", 0),
    ("aten.add.Tensor", "vectorized_elementwise_kernel", 1),
    ("aten.rsqrt.default", "vectorized_elementwise_kernel", 1),
    ("aten.mul.Tensor", "elementwise_kernel", 1),
    ("aten.mul.Tensor", "elementwise_kernel", 2),
)


def out_of_head(module: str) -> bool:
    """Whether a module is another than the head, which the edited capture runs faster."""
    return module != "lm_head"


class Capture:
    """Builds one GRAPH, operator by operator."""

    def __init__(self, size: int, on_gpu: bool, edited: bool = False) -> None:
        self.size, self.on_gpu, self.edited = size, on_gpu, edited
        self.ops: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = []
        self.buffers: dict[str, Any] = {"input_ids": _buffer("input", [size], 8)}

    def add(self, op: str, module: str, line: int, width: int, weight: int = 0, kernel: str = "", file: str = MODEL,
            api: str | None = None) -> None:  # fmt: skip
        """One operator that reads and writes ``width`` bf16 numbers a row, and ``weight`` of a parameter."""
        size, is_view = self.size, width == 0
        inputs = [f"{module}.weight"] if weight else ["pool.0"]
        if weight:
            self.buffers.setdefault(inputs[0], _buffer("weight", [weight // 1024, 1024], 2 * weight))
        read, written, flops = 2 * (weight + size * width), 2 * size * width, 2 * size * weight
        seconds = None
        if self.on_gpu:
            share = 0.25 + 0.6 * (zlib.crc32(f"{op}{line}".encode()) % 100) / 100
            share *= 1.0 if weight or width > 20_000 else 0.3
            share *= 1.0 if self.edited or out_of_head(module) else 0.6
            seconds = None if is_view else 1.1e-6 + (read + written) / BANDWIDTH / share
        nodes = None
        if self.on_gpu and not is_view:
            nodes = [len(self.nodes), 1]
            self.nodes.append(self._node(kernel or op, seconds, inputs[0]))
        shapes = f"[{size}, {width or HIDDEN}] -> [{size}, {width or HIDDEN}]"
        self.ops.append(
            {
                "index": len(self.ops), "op": op, "api": api, "module": module, "file": file, "line": line,
                "function": module.rpartition(".")[2] + ".forward", "inputs": inputs, "outputs": ["pool.1"],
                "shapes": shapes, "bytes_read": read if not is_view else 0, "bytes_written": written, "flops": flops,
                "seconds": seconds, "of_bandwidth": (read + written) / BANDWIDTH / seconds if seconds else None,
                "nodes": nodes,
            }
        )  # fmt: skip

    def _node(self, name: str, seconds: float | None, buffer: str) -> dict[str, Any]:
        parameters = [{"offset": 0, "size": 8, "value": "0x7f0000000000", "buffer": buffer}]
        return {
            "index": len(self.nodes), "type": "kernel", "name": name, "grid": [self.size * 8, 1, 1],
            "block": [128, 1, 1], "shared_bytes": 0, "parameters": parameters, "op": len(self.ops),
            "seconds": seconds, "bytes": None,
        }  # fmt: skip

    def norm(self, module: str, line: int, width: int) -> None:
        """Root mean square normalisation, op by op."""
        for op, kernel, offset in _NORM:
            self.add(op, module, line + offset, width, width if offset == 2 else 0, kernel)

    def linear(self, module: str, line: int, into: int, out: int) -> None:
        """A matrix product."""
        self.add("aten.t.default", module, line, 0)
        self.add("aten.mm.default", module, line, out, into * out, "nvjet_tst_64x8_64x16_4x1_v_bz_TNT",
                 api="torch.nn.functional.linear")  # fmt: skip

    def layer(self, layer: str) -> None:
        """One decoder layer."""
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        self.norm(f"{layer}.input_layernorm", 60, HIDDEN)
        for name, line, heads in (("q_proj", 112, HEADS), ("k_proj", 113, KV_HEADS), ("v_proj", 114, KV_HEADS)):
            self.linear(f"{attention}.{name}", line, HIDDEN, heads * HEAD)
            self.add("aten.view.default", attention, line, 0)
        self.norm(f"{attention}.q_norm", 60, HEADS * HEAD)
        self.norm(f"{attention}.k_norm", 60, KV_HEADS * HEAD)
        for _ in range(2):
            self.add("aten.mul.Tensor", attention, 131, HEADS * HEAD, kernel="elementwise_kernel")
            if not self.edited:
                self.add("aten.cat.default", attention, 132, HEADS * HEAD, kernel="CatArrayBatchedCopy")
        self.add("aten.index_put_.default", attention, 140, KV_HEADS * HEAD, kernel="index_put_kernel")
        self.add("aten.slice.Tensor", attention, 141, 0)
        self.add("ostinato.paged_attention.default", attention, 144, HEADS * HEAD * 40, kernel="_paged_attention")
        if self.edited and layer.endswith((".0", ".1", ".2")):
            self.add("aten.clone.default", attention, 149, HEADS * HEAD, kernel="direct_copy_kernel")
        self.linear(f"{attention}.o_proj", 150, HEADS * HEAD, HIDDEN)
        self.add("aten.add.Tensor", layer, 181, HIDDEN, kernel="vectorized_elementwise_kernel")
        self.norm(f"{layer}.post_attention_layernorm", 60, HIDDEN)
        self.linear(f"{mlp}.gate_proj", 84, HIDDEN, INTERMEDIATE)
        self.add("aten.silu.default", f"{mlp}.act_fn", 84, INTERMEDIATE, kernel="silu_kernel")
        self.linear(f"{mlp}.up_proj", 84, HIDDEN, INTERMEDIATE)
        self.add("aten.mul.Tensor", mlp, 84, INTERMEDIATE, kernel="elementwise_kernel")
        self.linear(f"{mlp}.down_proj", 85, INTERMEDIATE, HIDDEN)
        self.add("aten.add.Tensor", layer, 185, HIDDEN, kernel="vectorized_elementwise_kernel")

    def graph(self, layers: int) -> dict[str, Any]:
        """The whole step."""
        self.add("aten.embedding.default", "model.embed_tokens", 210, HIDDEN, kernel="indexSelectSmallIndex")
        for number in range(layers):
            self.layer(f"model.layers.{number}")
        self.norm("model.norm", 60, HIDDEN)
        self.linear("lm_head", 240, HIDDEN, VOCABULARY)
        self.add("aten.argmax.default", "", 47, VOCABULARY, kernel="reduce_kernel", file=STEP, api="Tensor.argmax")
        if self.on_gpu:
            copy = {"type": "memcpy", "op": None, "bytes": 4096, "grid": None, "block": None}
            self.nodes.append(self._node("Memcpy DtoD", 1.2e-6, "pool.1") | copy)
        replay = sum(op["seconds"] or 0 for op in self.ops) if self.on_gpu else None
        return {
            "batch_size": self.size, "level": "kernel" if self.on_gpu else "op", "ops": self.ops, "nodes": self.nodes,
            "edges": [[at, at + 1] for at in range(len(self.nodes) - 1)], "buffers": self.buffers,
            "memory": _memory(self.size, self.on_gpu), "replay_seconds": replay,
            "eager_seconds": 9.4e-3 if self.on_gpu else None, "rows_wasted": 0.31 / (1 + self.size % 7),
        }  # fmt: skip


def capture(sizes: tuple[int, ...] = (1, 2, 4, 8), layers: int = 28, on_gpu: bool = True) -> dict[str, Any]:
    """A saved capture, with findings as lint gives them."""
    return {
        "schema": 1,
        "kind": "ostinato-graph",
        "target": "step.py:decode",
        "environment": dict(ON_GPU if on_gpu else ENVIRONMENT),
        "graphs": {str(size): Capture(size, on_gpu).graph(layers) for size in sizes},
        "findings": findings(),
        "not_checked": ["ostinato.paged_attention.default: an opaque operator, its kernel was not looked into"],
    }


def changed_capture(sizes: tuple[int, ...] = (1, 2, 4, 16), layers: int = 28) -> dict[str, Any]:
    """The capture after an edit: two operators of the rotation gone, copies in three layers, a faster head."""
    graphs = {str(size): Capture(size, on_gpu=True, edited=True).graph(layers) for size in sizes}
    return capture((1,), 1) | {"graphs": graphs, "findings": findings()[1:]}


def findings() -> list[dict[str, Any]]:
    """A finding of each severity, at lines of the step."""
    return [
        finding("device-sync", "error", STEP, 47, "Tensor.item", "`lengths.max().item()` waits for the device",
                "Tensor.item on int64 [8]", "pass max_length in as a bound"),
        finding("frozen-value", "error", MODEL, 141, "aten.slice.Tensor", "argument end is kept as it was at capture",
                "end 5 -> 7 between two variants", "index with a tensor of static shape"),
        finding("recompile", "warning", STEP, 40, "decode", "compiled again when batch_size goes from 1 to 2",
                "guard: 2 <= L['x'].size()[0]", "mark the dimension dynamic before the first call"),
        finding("late-compile", "info", None, None, None, "3 kernels were tuned in the warm-up", "", "keep it"),
    ]  # fmt: skip


def finding(code: str, severity: str, file: str | None, line: int | None, op: str | None, message: str,
            evidence: str = "", fix: str = "") -> dict[str, Any]:  # fmt: skip
    """One finding as plain data."""
    return {
        "code": code, "severity": severity, "file": file, "line": line, "op": op, "message": message,
        "evidence": evidence, "fix": fix, "doc": f"docs/findings.md#{code}",
    }  # fmt: skip


def report(found: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """What lint returns."""
    found = findings() if found is None else found
    return {
        "schema": 1, "target": "step.py:decode", "environment": dict(ENVIRONMENT),
        "verdict": "findings" if any(each["severity"] != "info" for each in found) else "clean",
        "findings": found, "metrics": {"calls": 1063, "seconds": 4.1}, "not_checked": ["streams", "compiled regions"],
    }  # fmt: skip


def timeline(steps: int = 120) -> dict[str, Any]:
    """A run of decode steps, with a slower mixed one now and then."""
    rows, start = [], 0.0
    for number in range(steps):
        mixed = number % 17 == 9
        noise = (zlib.crc32(str(number).encode()) % 100) / 100
        parts = {
            "prepare": 0.0006 + 0.0004 * noise + 0.002 * mixed,
            "launch": 0.0002,
            "sample": 0.0004 + 0.0002 * noise,
            "wait": 0.0023 + 0.002 * mixed,
            "gap": 0.0003 + 0.0009 * noise * (number % 5 == 0),
        }
        rows.append({"start": start, "batch_size": 8 if number < 80 else 4, "rows": 7,
                     "kind": "mixed" if mixed else "decode", **parts})  # fmt: skip
        start += sum(parts[name] for name in ("prepare", "launch", "sample", "wait"))
    return {
        "schema": 1, "kind": "ostinato-timeline", "target": "step.py:decode", "environment": dict(ON_GPU),
        "steps": rows,
    }  # fmt: skip


def sizes(largest: int = 256) -> dict[str, Any]:
    """Advice on the sizes to capture."""
    histogram = {
        str(size): 1 + round(900 * 2 ** (-9 * abs(size - largest // 5) / largest)) + zlib.crc32(b"%d" % size) % 40
        for size in range(1, largest + 1)
    }
    best = [9, 24, 38, 51, 60, 78, 110, 160, largest]
    curve = [{"graphs": k, "sizes": best[-k:], "cost": 1.0 / k, "wasted": 0.72 / k + 0.11, "bytes": 10_485_760 * k}
             for k in range(1, 17)]  # fmt: skip
    return {
        "schema": 1, "kind": "ostinato-sizes", "histogram": histogram, "max_graphs": 9,
        "current": [1, 2, 4, 8, 16, 32, 64, 128, largest], "best": best, "wasted_now": 0.286, "wasted_best": 0.194,
        "curve": curve,
    }  # fmt: skip


def startup() -> dict[str, Any]:
    """A start-up with caches that hit and miss."""
    phases, start = [], 0.0
    for size in (1, 2, 4, 8):
        triton = "miss" if size == 8 else "hit"
        for name, seconds, cache in (
            ("dynamo", 1.9, None),
            ("aot", 0.8, "hit"),
            ("inductor", 6.2, "miss"),
            ("triton", 2.4, triton),
            ("capture", 0.35, None),
        ):
            took = seconds / (1 if size == 1 else 4)
            why = "the key differs: torch._inductor.config.coordinate_descent_tuning" if cache == "miss" else ""
            phase = {"name": name, "batch_size": size, "start": start, "seconds": took, "cache": cache, "why": why}
            phases.append(phase)
            start += took
    return {
        "schema": 1, "kind": "ostinato-startup", "target": "step.py:decode", "environment": dict(ENVIRONMENT),
        "phases": phases, "seconds": start,
    }  # fmt: skip


def _memory(size: int, on_gpu: bool) -> dict[str, Any]:
    return {
        "own_bytes": 2_200_000 * size, "shared_bytes": 900_000, "exec_bytes": 4_400_000 if on_gpu else None,
        "external_bytes": 1_192_000_000 + 65_000 * size,
        "by_line": [
            {"file": MODEL, "line": 84, "bytes": 12_288 * size},
            {"file": STEP, "line": 47, "bytes": 303_872 * size},
        ],
    }  # fmt: skip


def _buffer(kind: str, shape: list[int], count: int) -> dict[str, Any]:
    return {"kind": kind, "bytes": count, "shape": shape, "dtype": "bfloat16"}
