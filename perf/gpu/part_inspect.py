"""What `ostinato graph` says of the decode step on this GPU: a capture at two batch sizes, `lint`, and their page.

The three files lie beside the results. The figures say how much of the graphs the tool could explain.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostinato.graphs import inspect
from ostinato.models.step_target import step_target
from ostinato.perf.gpu.context import Context
from ostinato.perf.gpu.finding import Finding

if TYPE_CHECKING:
    from ostinato.graphs.inspect.capturing.ograph import OGraph, Op, SizeGraph
    from ostinato.graphs.inspect.report import Report

BATCH_SIZES = (1, 8)
MOST_BYTES = 20 << 20
"""Of all files."""
TOP = 5


def measure(context: Context) -> Finding:
    """Capture, lint, write; figures for each batch size."""
    context.close_engine()
    step = step_target(context.folder, device=context.device)
    name = f"{context.size.name} decode step"
    context.progress(f"capturing the step at batch sizes {', '.join(map(str, BATCH_SIZES))}")
    ograph = inspect.capture(step.function, step.make_inputs, batch_sizes=BATCH_SIZES, name=name)
    context.progress("linting it")
    report = inspect.lint(step.function, step.make_inputs, batch_sizes=BATCH_SIZES, name=name)
    files = _write(ograph, report, context.out)
    figures: dict[str, float] = {"inspect.errors": float(sum(f.severity == "error" for f in report.findings))}
    for size, graph in ograph.graphs.items():
        figures |= {f"inspect.{figure}_{size}": value for figure, value in figures_of(graph).items()}
    notes = tuple(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB" for file in files)
    top = {str(size): top_kernels(graph) for size, graph in ograph.graphs.items()}
    findings = [f"{f.severity} {f.code} {f.file}:{f.line}: {f.message}" for f in report.findings]
    return Finding(
        figures, notes, {"top_kernels": top, "findings": findings[:20], "not_checked": list(ograph.not_checked)}
    )


def _write(ograph: OGraph, report: Report, folder: Path) -> list[Path]:
    """The capture, the report and the page; ``RuntimeError`` if they are too large to be kept."""
    folder.mkdir(parents=True, exist_ok=True)
    capture, lint, page = (folder / f"gpu-inspect{end}" for end in (".ograph.gz", "-lint.json", ".html"))
    ograph.save(capture)
    lint.write_text(report.as_json() + "\n", encoding="utf-8")
    inspect.write_page([capture, lint], page)
    files = [capture, lint, page]
    if (total := sum(file.stat().st_size for file in files)) > MOST_BYTES:
        raise RuntimeError(f"{total:,} bytes of reports, more than {MOST_BYTES:,}: {', '.join(map(str, files))}")
    return files


def figures_of(graph: SizeGraph) -> Mapping[str, float]:
    """Of one batch size. Percentages are of nodes and of kernels; a graph without nodes has ops and bytes alone."""
    figures: dict[str, float | None] = {
        "ops": float(len(graph.ops)),
        "nodes": float(len(graph.nodes)),
        "pool_bytes": float(graph.memory.own_bytes),
        "exec_bytes": graph.memory.exec_bytes,
        "us_replay": 1e6 * graph.replay_seconds if graph.replay_seconds else None,
        "us_eager": 1e6 * graph.eager_seconds if graph.eager_seconds else None,
    }
    kernels = [node for node in graph.nodes if node.type == "kernel"]
    if graph.nodes:
        figures["attributed"] = 100 * sum(node.op is not None for node in graph.nodes) / len(graph.nodes)
    if kernels:
        figures["timed"] = 100 * sum(node.seconds is not None for node in kernels) / len(kernels)
    shares = [op.of_bandwidth for op in _longest(graph) if op.of_bandwidth is not None]
    if shares:
        figures["top_of_bandwidth"] = 100 * sum(shares) / len(shares)
    return {name: float(value) for name, value in figures.items() if value is not None}


def top_kernels(graph: SizeGraph) -> list[dict[str, Any]]:
    """The ops that take longest, with their share of the read bandwidth."""
    return [
        {"op": op.op, "module": op.module, "seconds": op.seconds, "bytes": op.bytes, "of_bandwidth": op.of_bandwidth}
        for op in _longest(graph)
    ]


def _longest(graph: SizeGraph) -> list[Op]:
    timed = [op for op in graph.ops if op.seconds is not None]
    return sorted(timed, key=lambda op: -(op.seconds or 0.0))[:TOP]
