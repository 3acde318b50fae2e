"""``llm.explain()``, the histogram in ``llm.stats()``, recorded timelines: what small engines say of themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deferred_stream import DeferredStream
from engines import checkpoint, engine, prompts, token_ids
from ostinato import LLM, EngineConfig, SamplingParams
from ostinato import explain as explaining
from ostinato.core import EngineCore
from ostinato.explain import explain
from ostinato.graphs.graph import eager_break
from ostinato.graphs.graph_set import GraphSet
from ostinato.graphs.inspect.numbers.sizes_file import advise_files, read_traffic
from ostinato.graphs.inspect.numbers.timeline import read_timeline, summary
from ostinato.graphs.inspect.report import Finding, Report, in_order, validate
from ostinato.layers.errors import ConfigError, EngineDead
from ostinato.load import load_decoder
from ostinato.models.checkpoint import read_config
from ostinato.output_processor import OutputProcessor
from ostinato.request import Request
from ostinato.runner import StepRunner
from ostinato.step_timeline import StepTimeline

TWENTY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """Graphs of 1 and 4 rows, of prompts of 8 and 16 tokens; 1, then 2, then 3 requests at once have run.

    One for all tests that do not change it: whatever else they run has up to 3 requests at once.
    """
    with engine("qwen3", execution="emulate", capture_sizes=[1, 4], prefill_capture_sizes=[8, 16]) as llm:
        for count in (1, 2, 3, 3, 3):
            llm.generate(prompts(count, seed=count), TWENTY)
        yield llm


def core_of(spoil: Callable[[Any], None], stream: Any = None, **options: Any) -> EngineCore:
    """An engine without the ``LLM`` around it, over a model that ``spoil`` has changed."""
    settings: dict[str, Any] = {"max_num_seqs": 4, "capture_sizes": [1, 4], "max_model_len": 128, "block_size": 4}
    config = EngineConfig(checkpoint("qwen3")[0], device="cpu", execution="emulate", **(settings | options))
    plan = replace(config.resolve(), num_blocks=24)
    decoder = load_decoder(plan, read_config(plan.folder), lambda *_: None)
    spoil(decoder)
    runner = StepRunner(plan, decoder, stream)
    runner.warm_up()
    return EngineCore(plan, runner)


def run(core: EngineCore, wanted: list[list[int]]) -> list[list[int]]:
    requests = [Request(number, prompt, TWENTY, number, frozenset()) for number, prompt in enumerate(wanted)]
    for request in requests:
        core.add(request, OutputProcessor(None, request, None))
    while any(core.is_live(request) for request in requests):
        core.step()
    return [request.output_token_ids for request in requests]


# The histogram.


def test_every_step_is_in_the_histogram_or_mixed(llm: LLM) -> None:
    stats = llm.stats()
    assert sum(stats.batch_histogram.values()) + stats.mixed_steps == stats.steps
    assert set(stats.batch_histogram) == {1, 2, 3}
    assert stats.capture_sizes == (1, 4)
    assert stats.replays == {
        1: stats.batch_histogram[1],
        4: stats.batch_histogram[2] + stats.batch_histogram[3],
    }
    assert "batch_histogram        1: " in str(stats)


def test_the_exported_statistics_are_what_sizes_reads(llm: LLM, tmp_path: Path) -> None:
    stats = llm.stats()
    (tmp_path / "stats.json").write_text(json.dumps(stats.as_dict()))
    traffic = read_traffic(tmp_path / "stats.json")
    assert traffic == (dict(stats.batch_histogram), (1, 4))
    result = advise_files(tmp_path / "stats.json", 3)
    assert (result["current"], result["best"][-1], len(result["best"])) == ([1, 4], 4, 3)
    assert result["cost_now"] == stats.padding_rows


# The report.


def test_the_report_says_what_served_and_what_was_padding(llm: LLM) -> None:
    report, stats = llm.explain(), llm.stats()
    validate(report.as_dict())
    assert Report.from_dict(json.loads(report.as_json())).as_dict() == report.as_dict()
    metrics = report.metrics
    assert (metrics["decode_sizes"], metrics["prefill_sizes"]) == ([1, 4], [8, 16])
    assert metrics["replays"] == {str(size): count for size, count in stats.replays.items()}
    assert metrics["padding_rows"] == {"4": stats.padding_rows}
    served = sum(size * count for size, count in stats.replays.items())
    assert metrics["padding_share"] == pytest.approx(stats.padding_rows / served)
    assert (metrics["recompiles"], metrics["late_kernel_compiles"], metrics["late_captures"]) == (0, 0, 0)
    assert (report.verdict, report.findings) == ("clean", ())


def test_steps_with_prompts_without_a_graph_are_counted_by_reason(llm: LLM) -> None:
    llm.generate([list(range(40, 60)), [5, 6, 7]], SamplingParams(temperature=0, max_tokens=1))  # 23 tokens at once
    report, stats = llm.explain(), llm.stats()
    without = report.metrics["mixed_steps_without_graph"]
    assert without["it has more than 16 tokens"] >= 1
    assert sum(without.values()) == stats.mixed_steps - sum(stats.prefill_replays.values())
    assert any("prefill_capture_sizes=[…] beyond 16" in text for text in report.metrics["advice"])


def test_prompts_in_pieces_and_many_at_once_have_reasons_of_their_own() -> None:
    options = {"execution": "emulate", "prefill_capture_sizes": [16], "max_num_seqs": 16}
    with engine("qwen3", max_num_batched_tokens=16, **options) as llm:
        llm.generate([list(range(40)), *[[1, 2]] * 15], SamplingParams(temperature=0, max_tokens=3))
        reasons = llm.stats().steps_without_graph
    assert reasons["no prompt ends in it"] >= 1
    assert reasons["it samples more than 8 rows"] >= 1


def test_the_text_fits_a_terminal_and_proposes_sizes_that_the_engine_takes(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = sum(llm.stats().batch_histogram.values())
    monkeypatch.setattr(explaining, "ENOUGH_STEPS", steps + 1)
    few = " ".join(str(llm.explain()).split())
    assert f"Too few decode steps for advice on capture_sizes: {steps} of {steps + 1}" in few
    monkeypatch.setattr(explaining, "ENOUGH_STEPS", steps)
    text = str(llm.explain())
    assert max(map(len, text.splitlines())) <= 100
    assert ": clean" in text.splitlines()[0]
    assert "capture_sizes=[3, 4], with no more graphs," in " ".join(text.split())
    with engine("qwen3", execution="emulate", capture_sizes=[3, 4]) as other:
        assert other.plan.capture_sizes == (3, 4)


def test_fewer_graphs_are_proposed_where_they_waste_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "ENOUGH_STEPS", 10)
    with engine("qwen3", execution="emulate", capture_sizes=[1, 2, 3, 4]) as llm:
        llm.generate(prompts(4), TWENTY)
        (advice,) = llm.explain().metrics["advice"]
    assert advice.startswith("1 graphs in place of 4 would do: capture_sizes=[4] makes")


def test_an_engine_without_graphs_says_how_to_get_them() -> None:
    with engine("qwen3", execution="eager") as llm:
        llm.generate(prompts(2), TWENTY)
        report = llm.explain()
    assert report.metrics["sizes"] is None
    assert report.metrics["advice"] == ["Nothing is captured with execution='eager': execution='graph' replays graphs."]


def test_a_size_that_was_dropped_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = GraphSet._capture

    def failing(self: Any, size: int, variant: Any, step: Any) -> None:
        if size == 4 and self.sizes_are == "batch sizes":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        capture(self, size, variant, step)

    monkeypatch.setattr(GraphSet, "_capture", failing)
    with pytest.warns(RuntimeWarning, match="no graphs for batch sizes 4"):
        core = core_of(lambda decoder: None)
    run(core, prompts(3))
    report = explain(core)
    assert report.metrics["dropped_sizes"] == {"4 rows": "CUDA out of memory. Tried to allocate 2.00 GiB."}
    (reason,) = report.metrics["eager_fallbacks"]
    assert any(reason in text for text in report.metrics["advice"])
    assert any("kv_cache_memory" in text for text in report.metrics["advice"])
    assert report.metrics["sizes"]["steps_without_graph_now"] == core.stats().eager_fallbacks[reason]


def test_a_split_graph_is_good_to_know() -> None:
    def spoil(decoder: Any) -> None:
        compute_logits = decoder.compute_logits

        @eager_break
        def logits_through_the_host(hidden: Tensor) -> Tensor:
            return torch.tensor(compute_logits(hidden).tolist())

        decoder.compute_logits = logits_through_the_host

    (finding,) = explain(core_of(spoil)).findings
    assert (finding.code, finding.severity) == ("graph-break", "info")
    assert finding.op is not None and finding.op.endswith("logits_through_the_host")


def test_broken_promises_are_warnings(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    promises = llm._core.runner.promises
    pieces, captures = promises._warm
    monkeypatch.setattr(promises, "kernel_compiles", promises.kernel_compiles + 2)
    monkeypatch.setattr(promises, "_warm", (pieces - 3, captures))
    late, again = llm.explain().findings
    assert (late.code, again.code) == ("late-compile", "recompile")
    assert late.message.startswith("2 kernels were compiled and 0 graphs captured after warm-up")
    assert again.message.startswith("3 pieces of the step")
    assert llm.explain().verdict == "findings"


def test_a_closed_engine_explains_nothing() -> None:
    llm = engine("qwen3")
    llm.close()
    with pytest.raises(EngineDead):
        llm.explain()


# The text of any report.


def test_findings_are_shown_by_severity_with_place_evidence_and_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    long = "the value of a tensor is read by the host, " * 4
    findings = in_order(
        [
            Finding.of("graph-break", "warning", ("/elsewhere/model.py", 7), "print breaks the graph"),
            Finding.of("rng", "info", None, "torch.rand is used"),
            Finding.of(
                "device-sync", "error", (str(Path.cwd() / "step.py"), 45), long, "Tensor.item", "a\nb", "keep it"
            ),
        ]
    )
    environment = {"torch": "2.13.0", "device": "NVIDIA H200", "cpu": None}
    text = str(Report("step.py:step", environment, findings, {"graphs": {"8": {"ops": 3}}}, ("streams",)))
    lines = text.splitlines()
    assert lines[:2] == ["step.py:step: 1 error, 1 warning, 1 note", "torch 2.13.0, NVIDIA H200"]
    assert lines[lines.index("ERRORS") + 1] == "step.py:45  device-sync  Tensor.item"
    assert lines[lines.index("    seen: a") :][:3] == ["    seen: a", "          b", "    fix:  keep it"]
    assert lines[lines.index("WARNINGS") + 1] == "/elsewhere/model.py:7  graph-break"
    assert lines[lines.index("GOOD TO KNOW") + 1] == "rng"
    assert text.index("ERRORS") < text.index("WARNINGS") < text.index("GOOD TO KNOW") < text.index("NUMBERS")
    assert lines[-2:] == ["NOT CHECKED", "- streams"]
    assert max(map(len, lines)) <= 100


# Timelines.


def test_a_timeline_has_every_step_of_the_time(llm: LLM, tmp_path: Path) -> None:
    before = llm.stats()
    want = token_ids(llm.generate(prompts(3), TWENTY))
    with llm.record_timeline() as timeline:
        assert token_ids(llm.generate(prompts(3), TWENTY)) == want
    llm.generate(prompts(3), TWENTY)
    after = llm.stats()
    assert 3 * len(timeline.steps) >= after.steps - before.steps - 3  # a third of them, as far as prompts were cached
    timeline.save(tmp_path / "timeline.json")
    data = read_timeline(tmp_path / "timeline.json")
    decode = [step for step in data["steps"] if step["kind"] == "decode"]
    assert {(step["rows"], step["batch_size"]) for step in decode} == {(3, 4)}
    assert data["steps"][0]["kind"] == "mixed"
    assert [step["start"] for step in data["steps"]] == sorted(step["start"] for step in data["steps"])
    assert data["steps"][0]["gap"] == 0
    for step in data["steps"]:
        assert all(step[part] > 0 for part in ("prepare", "launch", "sample", "wait", "replay"))
    for last, step in zip(data["steps"], data["steps"][1:], strict=False):
        assert step["gap"] == pytest.approx(step["start"] - last["start"] - last["replay"], abs=0.01)
        assert step["gap"] >= 0.9 * (last["sample"] + step["prepare"])  # on a CPU nothing overlaps
    assert summary(data)["steps"] == len(timeline.steps)
    assert "largest gaps" in str(timeline)


def test_the_pause_between_two_requests_is_no_gap(llm: LLM) -> None:
    with llm.record_timeline() as timeline:
        for _ in range(3):
            llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    assert [step.gap > 0 for step in timeline.steps] == [False, True, True] * 3


def test_nothing_of_a_recorder_stays_and_one_records_at_a_time(llm: LLM) -> None:
    runner = llm._core.runner
    stream = runner.stream
    with llm.record_timeline() as timeline:
        with pytest.raises(ConfigError, match="being recorded already"), llm.record_timeline():
            pass
        assert llm._core.timeline is timeline
    assert (llm._core.timeline, runner.stream) == (None, stream)
    with pytest.raises(KeyError), llm.record_timeline():
        raise KeyError
    assert (llm._core.timeline, runner.stream) == (None, stream)
    llm.generate(prompts(2), TWENTY)
    assert timeline.steps == []


def test_steps_launched_ahead_are_told_apart() -> None:
    core = core_of(lambda decoder: None, DeferredStream(3, eagerness=0.0), prefill_capture_sizes=[32, 128])
    wanted = prompts(4, seed=5)
    want = run(core, wanted)
    before = core.stats()
    timeline = StepTimeline(core)
    timeline.begin()
    assert run(core, wanted) == want
    timeline.end()
    after = core.stats()
    assert len(timeline.steps) == after.steps - before.steps
    decode = {(step.rows, step.batch_size) for step in timeline.steps if step.kind == "decode"}
    assert (4, 4) in decode and all(size in (1, 4) for _, size in decode)
    assert all(step.batch_size in (32, 128) for step in timeline.steps if step.kind == "mixed")
    for step in timeline.steps:  # work waits in the queue until somebody waits for it
        assert step.wait >= step.replay > 0
