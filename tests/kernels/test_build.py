"""Kernels compiled for GPUs that are not here: what they take is measured, and taking more fails the gate."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ostinato.layers.errors import ConfigError
from ostinato.layers.kernels.build import Resources, all_specimens, parse_usage, read_record, worse, write_record

pytestmark = pytest.mark.kernels
RECORD = Path(__file__).with_name("resources.json")


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tool as a user would: in a process of its own, where kernels are compiled and not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "ostinato.layers.kernels.build", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_kernels_compile_for_each_target_within_what_was_recorded(tmp_path: Path) -> None:
    """One of each kind; the tool without ``--only`` takes them all."""
    only = "kv_write-bf16|decode-plain-bf16-d128-b16|merge-bf16-d128|varlen-plain-fp16-d64"
    measured = tmp_path / "measured.json"
    done = build("--only", only, "--against", str(RECORD), "--json", str(measured))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 specimens, 3 targets, 0 problems" in done.stdout
    _, found = read_record(measured)
    assert {target for by_target in found.values() for target in by_target} == {"80", "90", "100"}
    assert all(got.registers > 0 for by_target in found.values() for got in by_target.values())


def test_a_kernel_that_takes_more_than_was_recorded_fails_the_gate(tmp_path: Path) -> None:
    record = json.loads(RECORD.read_text())
    name = "merge-bf16-d128"
    record["kernels"] = {name: record["kernels"][name]}
    record["kernels"][name]["80"]["shared"] -= 1
    stricter = tmp_path / "stricter.json"
    stricter.write_text(json.dumps(record))
    done = build("--only", name, "--targets", "80", "--against", str(stricter))
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"{name} for sm_80: [\d,]+ shared; [\d,]+ were recorded", done.stdout)


def test_the_gate_allows_one_step_of_registers_and_no_spill() -> None:
    before = Resources(registers=64, spills=8, shared=1024)
    assert worse("x", 80, Resources(72, 8, 1024), before) == []
    assert worse("x", 80, Resources(73, 9, 1025), before) == [
        "x for sm_80: 73 registers; 64 were recorded",
        "x for sm_80: 9 spills; 8 were recorded",
        "x for sm_80: 1,025 shared; 1,024 were recorded",
    ]


def test_a_target_limits_the_shared_memory() -> None:
    over = Resources(32, 0, (163 << 10) + 1)
    assert worse("x", 80, over, None) == ["x for sm_80: 166,913 bytes of shared memory; a program may have 166,912"]
    assert worse("x", 90, over, None) == []


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = {"b": {"80": Resources(1, 2, 3), "90": Resources(4, 5, 6)}, "a": {"80": Resources(7, 8, 9)}}
    write_record(tmp_path / "record.json", found)
    assert read_record(tmp_path / "record.json")[1] == found


def test_the_listing_of_one_kernel_is_understood_and_of_none_is_not() -> None:
    listing = " Function _kernel:\n  REG:96 STACK:24 SHARED:1024 LOCAL:0 CONSTANT[0]:952 TEXTURE:0\n"
    assert parse_usage(listing) == (96, 24)
    with pytest.raises(ConfigError, match="resources of 0 kernels, expected 1"):
        parse_usage("")


def test_interpreted_kernels_are_not_compiled() -> None:
    with pytest.raises(ConfigError, match="TRITON_INTERPRET is set"):
        all_specimens()


def test_every_combination_that_matters_is_recorded() -> None:
    _, recorded = read_record(RECORD)
    assert all(set(by_target) == {"80", "90", "100"} for by_target in recorded.values())
    for kernel in ("decode", "varlen"):
        names = [name for name in recorded if name.startswith(kernel)]
        for part in ("bf16", "fp16", "fp32", "d64", "d128", "d256", "b16", "b128", "g1", "g4", "g8"):
            assert any(part in name.split("-") for name in names), f"no specimen of {kernel} has {part}"
        for variant in ("plain", "window", "softcap", "alibi", "sinks", "all"):
            assert any(variant in name for name in names), f"no specimen of {kernel} has {variant}"
