"""Counters and histograms add up, and a scraper reads what is exported."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from engines import engine
from ostinato import SamplingParams
from ostinato.histogram import Histogram
from ostinato.metrics import Metrics, RequestClock, RequestMetrics
from ostinato.prometheus import as_prometheus


@given(st.lists(st.floats(0, 20)), st.lists(st.floats(0, 20), unique=True, min_size=1).map(sorted))
def test_a_histogram_counts_what_is_at_most_each_bound(values: list[float], bounds: list[float]) -> None:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    seen = histogram.seen()
    at_most = [sum(value <= bound for value in values) for bound in (*bounds, math.inf)]
    assert [sum(seen.counts[: place + 1]) for place in range(len(at_most))] == at_most
    assert seen.count == len(values) and seen.sum == pytest.approx(sum(values))
    if values:
        middle = sorted(values)[(len(values) - 1) // 2]
        assert seen.quantile(0.5) == min(bound for bound in (*bounds, math.inf) if bound >= middle)
    else:
        assert seen.quantile(0.5) is None and seen.mean is None


def test_a_quantile_is_a_share() -> None:
    with pytest.raises(ValueError, match="0 to 1, got 50"):
        Histogram((1.0,)).seen().quantile(50)


def story() -> tuple[RequestMetrics, RequestClock]:
    """Submitted at 10 s, taken at 11, first token at 13, three more at once at 16, over at 17."""
    metrics, clock = RequestMetrics(), RequestClock(arrival_time=1e9, submitted=10.0)
    metrics.scheduled(clock, 11.0, 5)
    metrics.token(clock, 13.0)
    metrics.scheduled(clock, 14.0, 5)
    metrics.token(clock, 16.0, count=3)
    metrics.ended(clock, 17.0, "stop", num_prompt=5, num_generated=4)
    return metrics, clock


def test_the_times_of_a_request() -> None:
    metrics, clock = story()
    timings = clock.timings()
    assert (timings.queued_seconds, timings.time_to_first_token, timings.decode_seconds) == (1.0, 3.0, 3.0)
    assert timings.total_seconds == 7.0 and timings.arrival_time == 1e9
    sums = {name: (each.seen().count, each.seen().sum) for name, each in metrics.histograms.items()}
    assert sums["time_to_first_token_seconds"] == (1, 3.0)
    assert sums["inter_token_latency_seconds"] == (3, 3.0)
    assert sums["request_queue_seconds"] == (1, 1.0)
    assert sums["request_prompt_tokens"] == (1, 5.0) and sums["request_generation_tokens"] == (1, 4.0)
    assert metrics.finished == {"stop": 1} and metrics.prompt_tokens == 5


def test_a_request_that_never_ran_has_no_times() -> None:
    metrics, clock = RequestMetrics(), RequestClock(arrival_time=0.0, submitted=1.0)
    metrics.ended(clock, 2.0, "abort", num_prompt=5, num_generated=0)
    assert clock.timings().queued_seconds is None and clock.timings().time_to_first_token is None
    assert metrics.histograms["request_decode_seconds"].seen().count == 0


def test_a_scraper_reads_what_is_exported() -> None:
    metrics, _ = story()
    histograms = {name: each.seen() for name, each in metrics.histograms.items()}
    seen = Metrics({"prompt_tokens": 5}, {"kv_cache_usage": 0.25}, metrics.finished, histograms)
    label = 'a "model"\\with\nlines'
    families = {each.name: each for each in text_string_to_metric_families(as_prometheus(seen, {"model": label}))}
    assert all(sample.labels["model"] == label for each in families.values() for sample in each.samples)
    assert families["ostinato_prompt_tokens"].samples[0].value == 5
    assert families["ostinato_kv_cache_usage"].samples[0].value == 0.25
    (finished,) = families["ostinato_requests_finished"].samples
    assert finished.labels["finished_reason"] == "stop" and finished.value == 1
    first = families["ostinato_time_to_first_token_seconds"]
    by_bound = {s.labels["le"]: s.value for s in first.samples if s.name.endswith("_bucket")}
    assert by_bound["2.5"] == 0 and by_bound["5"] == 1 and by_bound["+Inf"] == 1
    assert {s.name.rpartition("_")[2]: s.value for s in first.samples if "le" not in s.labels} == {"sum": 3, "count": 1}
    assert all(each.documentation for each in families.values())


def test_an_engines_numbers_are_those_of_its_outputs() -> None:
    prompts = [[5, 6, 7], [8, 9], [10] * 40]
    with engine("qwen3", max_num_seqs=2) as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
        with llm.stream([5, 6], SamplingParams(max_tokens=50)) as stream:
            next(stream)
        seen = llm.metrics()
    assert seen.finished == {"length": 3, "abort": 1}
    assert seen.counters["prompt_tokens"] == sum(map(len, prompts)) + 2
    assert seen.gauges["requests_running"] == seen.gauges["requests_waiting"] == seen.gauges["kv_cache_usage"] == 0
    generated = seen.histograms["request_generation_tokens"]
    assert generated.count == 4 and generated.sum == seen.counters["generation_tokens"] >= 3 * 6 + 1
    between = seen.histograms["inter_token_latency_seconds"]
    assert between.count == generated.sum - 4 and seen.histograms["time_to_first_token_seconds"].count == 4
    for output in outputs:
        times = output.metrics
        assert times is not None and times.queued_seconds is not None and times.decode_seconds is not None
        assert 0 <= times.queued_seconds < (times.time_to_first_token or 0)
        assert (times.time_to_first_token or 0) + times.decode_seconds <= (times.total_seconds or 0)
    third = outputs[2].metrics
    assert third is not None and (third.queued_seconds or 0) > 0  # two run at a time
    assert "ostinato_requests_finished_total{" in seen.as_prometheus({"model_name": "tiny"})
