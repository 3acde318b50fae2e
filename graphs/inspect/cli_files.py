"""Commands that read saved files: show, diff, memory, timeline, sizes, report, check. None of them needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ostinato.graphs.inspect.cli_options import CaptureFile, JsonFile, OneOfSizes, at_least_one, sizes_of
from ostinato.graphs.inspect.cli_output import STDOUT, check_writable, put_result, write_file
from ostinato.layers.errors import ConfigError

SCHEMA = 1
Sized = "A saved capture, or FILE@8 for the graph of batch size 8 in it."


def show(
    file: CaptureFile,
    batch_size: OneOfSizes = None,
    by: Annotated[
        str, typer.Option("--by", metavar="module|kernel|line|op", help="What to add up; op lists them one by one.")
    ] = "op",
    json_file: JsonFile = None,
) -> None:
    """The graph of one batch size as a table: time, share of the step, bytes, share of the bandwidth, nodes."""
    from ostinato.graphs.inspect.capturing import show as tables
    from ostinato.graphs.inspect.capturing.ograph import OGraph

    check_writable("--json", json_file)
    ograph = OGraph.load(file)
    text = tables.show(ograph, batch_size, cast(tables.By, by))
    graph = ograph.at(batch_size)
    rows = graph.ops if by == "op" else tables.groups(graph, cast(tables.By, by))
    data = {"target": ograph.target, "batch_size": graph.batch_size, "by": by, "rows": [asdict(row) for row in rows]}
    put_result(lambda: text, _of_kind("show", data), json_file)


def diff(
    before: Annotated[str, typer.Argument(metavar="A", help=Sized)],
    after: Annotated[str, typer.Argument(metavar="B", help=Sized)],
    json_file: JsonFile = None,
) -> None:
    """Kernels and operations that came, went or changed between two sizes, commits or machines."""
    from ostinato.graphs.inspect.capturing.diff_text import diff_text
    from ostinato.graphs.inspect.capturing.graph_diff import graph_diff, load_size

    check_writable("--json", json_file)
    (_, old), (_, new) = load_size(before), load_size(after)
    names = _short_names(before, after)
    data = {"before": before, "after": after} | graph_diff(old, new)
    put_result(lambda: diff_text(old, new, names), _of_kind("diff", data), json_file)


def memory(file: CaptureFile, json_file: JsonFile = None) -> None:
    """Bytes of each graph: its own, shared, of the instantiated graph, of inputs and weights; with lines."""
    from ostinato.graphs.inspect.capturing.ograph import OGraph
    from ostinato.graphs.inspect.capturing.pool_memory import memory_text

    check_writable("--json", json_file)
    ograph = OGraph.load(file)
    graphs = {str(size): asdict(ograph.graphs[size].memory) for size in sorted(ograph.graphs)}
    put_result(lambda: memory_text(ograph), _of_kind("memory", {"target": ograph.target, "graphs": graphs}), json_file)


def timeline(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="What llm.record_timeline() saved, or a trace of torch.profiler.")
    ],
    json_file: JsonFile = None,
) -> None:
    """The gaps between replays, split into prepare, launch, sample and wait."""
    from ostinato.graphs.inspect.numbers.timeline import read_timeline, summary, timeline_text

    check_writable("--json", json_file)
    data = read_timeline(file)
    put_result(lambda: timeline_text(data), data | {"summary": summary(data)}, json_file)


def sizes(
    histogram: Annotated[
        str, typer.Argument(metavar="HISTOGRAM", help='What llm.stats() exports, {"rows": steps}, or CSV.')
    ],
    max_graphs: Annotated[int, typer.Option("--max-graphs", metavar="K", help="Graphs at most.")],
    memory_limit: Annotated[
        str | None, typer.Option("--memory-limit", metavar="BYTES", help="For all graphs: 2GiB, 500MB.")
    ] = None,
    cost: Annotated[
        str | None, typer.Option("--cost", metavar="FILE", help="A saved capture: seconds and bytes by size.")
    ] = None,
    current: Annotated[
        str | None, typer.Option("--current", metavar="N,N", help="The sizes that are captured now.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """The batch sizes to capture for the traffic there is, what is wasted now, and what each further graph brings."""
    from ostinato.graphs.inspect.numbers.sizes_file import advise_files, sizes_text

    at_least_one("--max-graphs", max_graphs)
    check_writable("--json", json_file)
    now = None if current is None else sizes_of(current, "--current")
    result = advise_files(histogram, max_graphs, memory_limit=memory_limit, cost=cost, current=now)
    put_result(lambda: sizes_text(result), result, json_file)


def report(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="JSON of any of these commands, .ograph files.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="The page: report.html.")],
    diff: Annotated[
        bool, typer.Option("--diff", help="Paint what changed between two captures, old one first.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """One self-contained HTML page with pictures, of any of the files; two captures compared with --diff."""
    from ostinato.graphs.inspect.page import write_page

    if output == STDOUT:
        raise ConfigError("-o: expected a file")
    check_writable("-o", output)
    check_writable("--json", json_file)
    if Path(output).resolve() in {Path(file).resolve() for file in files}:
        raise ConfigError(f"-o: {output!r} is one of the files to read")
    written = write_page(files, output, diff=diff)
    data = {"output": str(written), "bytes": written.stat().st_size, "files": files, "diff": diff}
    put_result(lambda: f"{written}: {data['bytes']:,} bytes", _of_kind("page", data), json_file)


def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON of any of these commands, or an .ograph file.")],
    gate: Annotated[str | None, typer.Option("--gate", metavar="FILE", help="The limits: gates.toml.")] = None,
    write: Annotated[
        str | None, typer.Option("--write", metavar="FILE", help="Write limits that hold now, to begin from.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Gates for continuous integration on exact numbers; a broken one names old and new value and the line."""
    if (gate is None) == (write is None):
        raise ConfigError("give --gate gates.toml to check, or --write gates.toml to begin: one of the two")
    check_writable("--json", json_file)
    check_writable("--write", write)
    if gate is not None:
        _check_gates(file, gate, json_file)
    elif write is not None:
        _write_gates(file, write, json_file)


COMMANDS = (show, diff, memory, timeline, sizes, report, check)


def _check_gates(file: str, gate: str, json_file: str | None) -> None:
    from ostinato.graphs.inspect.json_file import read_json
    from ostinato.graphs.inspect.numbers import gates

    limits = gates.read_gates(gate)
    number = len(limits.gates) + len(limits.findings or {})
    if not number:
        raise ConfigError(f"{gate}: no gate in it")
    broken = gates.check(_of_this_tool(read_json(file), file), limits)
    data = {"file": file, "gates": number, "broken": [asdict(each) for each in broken]}
    head = f"{file}: {len(broken)} of {number} gates broken" if broken else f"{file}: {number} gates hold"
    put_result(lambda: "\n".join([head, *(str(each) for each in broken)]), _of_kind("check", data), json_file)
    raise typer.Exit(1 if broken else 0)


def _write_gates(file: str, write: str, json_file: str | None) -> None:
    from ostinato.graphs.inspect.json_file import read_json
    from ostinato.graphs.inspect.numbers.gates_writer import write_gates
    from ostinato.graphs.inspect.page.documents import read_document

    read_document(file)  # checks it
    text = write_gates(read_json(file))
    if write == STDOUT and json_file == STDOUT:
        raise ConfigError("--write and --json cannot both write to stdout")
    write_file("--write", write, text)
    number = text.count("\n[[gate]]\n") + text.count("\n[findings]\n")
    data = {"file": file, "output": write, "gates": number}
    if write != STDOUT or json_file is not None:
        put_result(lambda: f"{write}: written from {file}", _of_kind("gates", data), json_file)


def _of_kind(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA, "kind": f"ostinato-{name}", **data}


def _of_this_tool(data: Any, file: str) -> dict[str, Any]:
    if not isinstance(data, dict) or "schema" not in data:
        raise ConfigError(f"{file}: not a file of this tool: no schema in it")
    if data["schema"] != SCHEMA:
        raise ConfigError(f"{file}.schema is {data['schema']!r}; this version reads {SCHEMA}")
    return data


def _short_names(before: str, after: str) -> tuple[str, str]:
    """Names for columns: without folders, where that still tells them apart."""
    short = before.rpartition("/")[2], after.rpartition("/")[2]
    return short if short[0] != short[1] else (before, after)
