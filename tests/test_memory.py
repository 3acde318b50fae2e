"""Memory: what a container leaves, and pages that cost nothing until they are written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from engines import checkpoint, engine
from ostinato import LLM, ConfigError, EngineConfig
from ostinato.graphs.regions import region_of
from ostinato.memory import container_bytes_left, format_bytes, free_bytes
from ostinato.models.kv_cache import allocate_kv_cache
from ostinato.models.registry import family_for
from tiny_checkpoints import build

MIB = 1 << 20


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_container_leaves_its_limit_less_what_cannot_be_reclaimed(tmp_path: Path) -> None:
    stat = f"anon {300 * MIB}\nfile {90 * MIB}\ninactive_file {60 * MIB}\n"
    write(
        tmp_path,
        {"memory.max": f"{1000 * MIB}\n", "memory.current": f"{400 * MIB}\n", "memory.stat": stat},
    )
    assert container_bytes_left(tmp_path) == 660 * MIB


def test_the_older_layout_of_control_groups(tmp_path: Path) -> None:
    write(
        tmp_path / "memory",
        {
            "memory.limit_in_bytes": f"{1000 * MIB}",
            "memory.usage_in_bytes": f"{1200 * MIB}",
            "memory.stat": f"total_inactive_file {50 * MIB}\n",
        },
    )
    assert container_bytes_left(tmp_path) == 0, "over its limit: nothing is left, not less than nothing"


@pytest.mark.parametrize("files", [{}, {"memory.max": "max\n", "memory.current": "5\n"}, {"memory.max": "7\n"}])
def test_no_limit_is_none(files: dict[str, str], tmp_path: Path) -> None:
    assert container_bytes_left(write(tmp_path, files)) is None


def test_free_memory_is_the_lesser_of_machine_and_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": f"{64 * MIB}", "memory.current": "0"}
    monkeypatch.setattr("ostinato.memory.CGROUP", write(tmp_path, files))
    assert free_bytes(torch.device("cpu")) == 64 * MIB
    monkeypatch.setattr("ostinato.memory.CGROUP", tmp_path / "none")
    assert free_bytes(torch.device("cpu")) > 64 * MIB


def test_pages_of_the_cache_are_resident_when_they_are_written(tmp_path: Path) -> None:
    build("qwen3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    spec = family_for(config).spec(config)
    per_block = spec.kv_elements_per_token * 16 * 2
    resident = psutil.Process().memory_info
    before = resident().rss
    num_blocks, cpu = 512 * MIB // per_block, torch.device("cpu")
    cache = allocate_kv_cache(spec, num_blocks, 16, torch.bfloat16, cpu, lambda *what: region_of(*what).parts)
    assert sum(pages.nbytes for layer in cache for pages in layer) > 500 * MIB
    assert resident().rss - before < 64 * MIB
    assert not any(pages[::97].any() for layer in cache for pages in layer)
    for layer in cache:
        for pages in layer:
            pages.fill_(1)
    assert resident().rss - before > 450 * MIB
    del layer, pages, cache
    assert resident().rss - before < 64 * MIB, "given back with the tensors"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3 TiB")])
def test_bytes_read_well(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("size", "usable"),
    [("30 blocks", 30), ("1,000 tokens", 250), ("1 token", 1), ("1_001 Tokens", 251), (31 * 3072, 30)],
)
def test_a_cache_by_blocks_by_tokens_or_by_bytes(size: int | str, usable: int) -> None:
    """Tokens and blocks are what requests can use; bytes are all that is taken, null block included."""
    plan = EngineConfig(
        checkpoint("qwen3")[0], device="cpu", block_size=4, max_num_seqs=2, kv_cache_memory=size
    ).resolve()
    assert plan.block_bytes == 3072
    assert plan.num_blocks - 1 == usable
    assert plan.max_model_len == min(plan.spec.max_position_embeddings, 4 * usable + 1)


@pytest.mark.parametrize(
    ("size", "match"),
    [
        ("0 blocks", "kv_cache_memory: expected 1 to 1,099,511,627,776 blocks, got '0 blocks'"),
        ("9999999999999999 tokens", "kv_cache_memory: expected 1 to 1,099,511,627,776 tokens"),
        ("64k tokens", "kv_cache_memory: expected bytes, .* or '4096 tokens', or '256 blocks', got '64k tokens'"),
        ("1000000000 tokens", r"kv_cache_memory = .* \(768,000,003,072 bytes, for 1,000,000,000 tokens\) is more than"),
    ],
)
def test_sizes_that_cannot_be_name_what_was_asked(size: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        EngineConfig(checkpoint("qwen3")[0], device="cpu", block_size=4, kv_cache_memory=size).resolve()


def test_an_engine_says_what_it_will_take_and_what_it_took() -> None:
    config = EngineConfig(checkpoint("qwen3")[0], device="cpu", execution="eager", kv_cache_memory="1MiB")
    planned = config.resolve().memory
    with LLM(config.model, device="cpu", execution="eager", kv_cache_memory="1MiB") as llm:
        memory, plan = llm.memory, llm.plan
        assert (memory.weights, memory.kv_cache) == (plan.weight_bytes, plan.kv_cache_bytes)
        assert (memory.activations, memory.graphs) == (None, 0)  # nobody counts them on a CPU
        assert memory.logits == 16 * plan.spec.vocab_size * 4
        assert memory.total == memory.weights + memory.kv_cache + memory.tables + memory.sampling
        assert memory.sampling > 17 * plan.spec.vocab_size * 4, "a count of each token, 16 slots and a spare one"
        assert memory.planned == planned == replace(memory, planned=None)
    lines = {line.split()[0]: line for line in str(memory).splitlines()}
    assert lines["kv_cache"].split(maxsplit=1)[1].split("planned") == [
        f"{format_bytes(memory.kv_cache)}".ljust(len(lines["kv_cache"].split("planned")[0]) - 13),
        f" {format_bytes(memory.kv_cache)}",
    ]
    assert lines["activations"].split("planned")[0].strip() == "activations  not measured"
    assert list(lines) == ["weights", "kv_cache", "tables", "activations", "logits", "sampling", "graphs", "total"]


@pytest.mark.parametrize("variant", ["qwen3", "gemma3", "mpt", "gpt2", "phi3_longrope"])
def test_what_is_planned_of_weights_and_tables_is_what_is_taken(variant: str) -> None:
    with engine(variant) as llm:
        memory = llm.memory
    assert memory.planned is not None
    assert memory.tables == memory.planned.tables > 0
    assert 0 <= memory.weights - memory.planned.weights < 100, "slopes and the like are beside the parameters"


def test_what_a_plan_cannot_know_of_a_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = EngineConfig(checkpoint("qwen3")[0], device="cpu", kv_cache_memory="1MiB").resolve()
    on_gpu = replace(plan, device=torch.device("cuda", 0)).memory
    assert on_gpu.graphs is None
    assert "graphs       not measured" in str(on_gpu)
    assert on_gpu.total == on_gpu.weights + on_gpu.kv_cache + on_gpu.tables + on_gpu.sampling
