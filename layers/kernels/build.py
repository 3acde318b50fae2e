"""``python -m ostinato.layers.kernels.build``: every kernel compiled for GPUs that need not be there, and measured.

A kernel module's ``specimens()`` say what to compile. Of each, for each target: registers a thread, bytes spilled from
them, and shared memory a program. ``--against FILE`` compares with what was recorded and exits 1 if a kernel got worse.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ostinato.layers.errors import ConfigError
from ostinato.layers.kernels.availability import interpreted
from ostinato.layers.kernels.specimen import Specimen

MODULES = ("kv_write", "paged_decode", "paged_varlen", "sampling")
TARGETS = (80, 90, 100)
SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
"""Bytes of shared memory that one program may have (CUDA C++ Programming Guide, technical specifications)."""
REGISTER_SLACK = 8
"""A thread gets its registers in eights: this much is one step. Spills and shared memory are not allowed to grow."""


@dataclass(frozen=True)
class Resources:
    """What one specimen takes on one target."""

    registers: int
    spills: int
    """Bytes of stack a thread: no kernel has an array of its own, so these are registers that did not fit."""
    shared: int
    """Bytes a program."""


def all_specimens(pattern: str = "") -> dict[str, Specimen]:
    """By name, those of every kernel module whose name the regular expression finds something in."""
    if interpreted():
        raise ConfigError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it")
    modules = [importlib.import_module(f"ostinato.layers.kernels.{name}") for name in MODULES]
    found = [specimen for module in modules for specimen in module.specimens()]
    named = {specimen.name: specimen for specimen in found if re.search(pattern, specimen.name)}
    if not pattern and len(named) < len(found):
        raise ConfigError(f"{len(found)} specimens have {len(named)} names; each needs its own")
    return named


def compile_specimen(specimen: Specimen, target: int) -> Resources:
    """Compile for ``sm_<target>``; whatever Triton raises is the caller's."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = specimen.function.arg_names
    constants = dict(specimen.constexprs)
    aligned = [name for name, kind in specimen.signature.items() if kind.startswith("*") or name in specimen.aligned]
    source = ASTSource(
        fn=specimen.function,
        signature={name: "constexpr" if name in constants else specimen.signature[name] for name in names},
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name not in constants},
    )
    options = {"num_warps": specimen.num_warps, "num_stages": specimen.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return Resources(*_registers_and_spills(compiled.asm["cubin"]), compiled.metadata.shared)


def _registers_and_spills(cubin: bytes) -> tuple[int, int]:
    """What a compiled kernel takes of a thread, from the tool that Triton ships."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)]
        return parse_usage(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parse_usage(listing: str) -> tuple[int, int]:
    """Registers and bytes of stack of the one kernel in cuobjdump's listing."""
    found = re.findall(r"REG:(\d+) STACK:(\d+)", listing)
    if len(found) != 1:
        raise ConfigError(f"cuobjdump lists the resources of {len(found)} kernels, expected 1:\n{listing}")
    return int(found[0][0]), int(found[0][1])


def worse(name: str, target: int, got: Resources, recorded: Resources | None) -> list[str]:
    """What of a specimen's resources is over the target's limit or over what was recorded, one line each."""
    lines = []
    limit = SHARED_LIMIT[target]
    if got.shared > limit:
        lines.append(f"{name} for sm_{target}: {got.shared:,} bytes of shared memory; a program may have {limit:,}")
    if recorded is None:
        return lines
    for field, slack in (("registers", REGISTER_SLACK), ("spills", 0), ("shared", 0)):
        now, before = getattr(got, field), getattr(recorded, field)
        if now > before + slack:
            lines.append(f"{name} for sm_{target}: {now:,} {field}; {before:,} were recorded")
    return lines


def measure(names: Iterable[str], targets: Sequence[int]) -> tuple[dict[str, dict[str, Resources]], list[str]]:
    """``{specimen: {target: resources}}`` and a line for each that does not compile; a process per processor."""
    tasks = [(name, target) for name in names for target in targets]
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(os.cpu_count(), initializer=_use_cache, initargs=(cache,)) as pool,
    ):
        results = list(pool.map(_attempt, *zip(*tasks, strict=True)))
    found: dict[str, dict[str, Resources]] = {}
    failures = []
    for (name, target), result in zip(tasks, results, strict=True):
        if isinstance(result, str):
            failures.append(f"{name} for sm_{target} does not compile: {result}")
        else:
            found.setdefault(name, {})[str(target)] = result
    return found, failures


def _use_cache(folder: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = folder


def _attempt(name: str, target: int) -> Resources | str:
    try:
        return compile_specimen(all_specimens()[name], target)
    except Exception as error:  # whatever Triton's passes or ptxas raise is this specimen's result
        return f"{type(error).__name__}: {error}".strip()


def read_record(path: Path) -> tuple[str, dict[str, dict[str, Resources]]]:
    """The Triton version of a record, and its resources."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kernels = {
        name: {target: Resources(**numbers) for target, numbers in by_target.items()}
        for name, by_target in record["kernels"].items()
    }
    return record["triton"], kernels


def write_record(path: Path, found: dict[str, dict[str, Resources]]) -> None:
    """One line per specimen and target, so that a change shows as a change of one line."""
    import triton

    lines = []
    for name, by_target in sorted(found.items()):
        inner = ",\n".join(f'      "{target}": {json.dumps(asdict(got))}' for target, got in by_target.items())
        lines.append(f'    "{name}": {{\n{inner}\n    }}')
    body = ",\n".join(lines)
    path.write_text(f'{{\n  "triton": "{triton.__version__}",\n  "kernels": {{\n{body}\n  }}\n}}\n', encoding="utf-8")


def gate(found: dict[str, dict[str, Resources]], against: Path | None) -> list[str]:
    """Everything that is worse than it may be; a record made by another Triton binds only by the targets' limits."""
    import triton

    version, recorded = read_record(against) if against else ("", {})
    if version and version != triton.__version__:
        print(f"{against} was recorded with Triton {version}, this is {triton.__version__}: only limits are checked")
        recorded = {}
    lines: list[str] = []
    for name, by_target in found.items():
        for target, got in by_target.items():
            before = recorded.get(name, {}).get(target)
            if recorded and before is None:
                lines.append(f"{name} for sm_{target} is not in {against}; record it with --json")
            lines += worse(name, int(target), got, before)
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print a table, record, compare; 0 if nothing is worse than it may be, else 1."""
    parser = argparse.ArgumentParser(prog="python -m ostinato.layers.kernels.build", description=__doc__)
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)), help="compute capabilities, such as 80,90")
    parser.add_argument("--only", default="", help="a regular expression: specimens whose name has a match")
    parser.add_argument("--json", type=Path, help="record the resources here")
    parser.add_argument("--against", type=Path, help="a record to compare with")
    options = parser.parse_args(arguments)
    targets = [int(target) for target in options.targets.split(",")]
    unknown = [target for target in targets if target not in SHARED_LIMIT]
    if unknown:
        parser.error(f"unknown targets {unknown}; known are {sorted(SHARED_LIMIT)}")
    names = list(all_specimens(options.only))
    if not names:
        parser.error(f"no specimen's name has a match of {options.only!r}")
    found, problems = measure(names, targets)
    for name, by_target in found.items():
        for target, got in by_target.items():
            print(f"{name:44} sm_{target:4} {got.registers:4} registers {got.spills:6} spilled {got.shared:8,} shared")
    problems += gate(found, options.against)
    if options.json:
        write_record(options.json, found)
    print(*problems, f"{len(found)} specimens, {len(targets)} targets, {len(problems)} problems", sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
