"""The public engine as a caller meets it: prompts of every kind, streams, threads, faults, closing, bad input."""

from __future__ import annotations

import gc
import json
import linecache
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines import (
    GREEDY,
    checked,
    checkpoint,
    ctrl_c_when,
    engine,
    held,
    paced,
    prompts,
    reference_tokens,
    token_ids,
)
from ostinato import LLM, SamplingParams
from ostinato.errors import (
    ConfigError,
    EngineDead,
    ModelLoadError,
    NonFiniteLogits,
    OstinatoError,
    OutOfBlocks,
    ParamError,
    PromptTooLong,
)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with engine("qwen3") as llm:
        yield llm


@pytest.fixture(scope="module")
def demo() -> Iterator[LLM]:
    with checked(LLM("demo", device="cpu", dtype="float32", execution="eager")) as llm:
        yield llm


# Prompts and outputs.


def test_one_prompt_and_lists_of_prompts_of_each_kind(demo: LLM) -> None:
    text, ids = "import os", demo.tokenizer.encode("import os")  # type: ignore[union-attr]
    params = SamplingParams(temperature=0, max_tokens=8)
    outputs = [
        *demo.generate(text, params),
        *demo.generate([text], params),
        *demo.generate(ids, params),
        *demo.generate([ids, tuple(ids), np.array(ids), text], params),
        *demo.generate(np.array(ids), params),
    ]
    assert len(outputs) == 8
    assert len({output.outputs[0].text for output in outputs}) == 1
    assert all(output.prompt_token_ids == ids for output in outputs)
    assert demo.generate([]) == []


def test_an_output_says_what_happened(llm: LLM) -> None:
    (output,) = llm.generate([3, 4, 5], GREEDY)
    completion = output.outputs[0]
    assert output.finished and output.error is None
    assert (output.num_cached_tokens, completion.finish_reason, completion.stop_reason) == (0, "length", None)
    assert completion.text == ""  # this checkpoint has no tokenizer
    assert len(completion.token_ids) == 24


def test_sampling_params_one_each(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 5, 3)]
    assert [len(ids) for ids in token_ids(llm.generate([[1], [2], [3]], params))] == [1, 5, 3]


def test_the_model_length_ends_a_request() -> None:
    with engine("qwen3", max_model_len=20) as llm:
        (output,) = llm.generate(list(range(15)), SamplingParams(temperature=0, max_tokens=50))
        assert len(output.outputs[0].token_ids) == 5
        assert output.outputs[0].finish_reason == "length"
        assert len(token_ids(llm.generate(list(range(19)), GREEDY))[0]) == 1
        with pytest.raises(PromptTooLong, match="20 tokens; max_model_len is 20"):
            llm.generate(list(range(20)), GREEDY)


@pytest.mark.parametrize("place", ["config", "generation_config", "both"])
def test_eos_ids_come_from_both_files(place: str, tmp_path: Path) -> None:
    shutil.copytree(checkpoint("qwen3")[0], tmp_path / "model")
    (tokens,) = token_ids(generate_in(checkpoint("qwen3")[0], [9, 9]))
    eos = tokens[3]
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["eos_token_id"] = eos if place == "config" else 111 if place == "both" else None
    generation = {"eos_token_id": [eos, 110] if place != "config" else None}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    (tmp_path / "model/generation_config.json").write_text(json.dumps(generation))
    (output,) = generate_in(tmp_path / "model", [9, 9])
    end = tokens.index(eos) + 1
    assert output.outputs[0].token_ids == tokens[:end]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", None)
    (ignoring,) = generate_in(tmp_path / "model", [9, 9], ignore_eos=True)
    assert ignoring.outputs[0].token_ids == tokens


def generate_in(folder: Path, prompt: list[int], **params: Any) -> Any:
    with LLM(folder, device="cpu", execution="eager", max_model_len=64) as llm:
        return llm.generate(prompt, SamplingParams(temperature=0, max_tokens=12, **params))


def test_stop_token_ids_stop_and_min_tokens_holds_them_back(llm: LLM) -> None:
    (free,) = token_ids(llm.generate([9, 9], GREEDY))
    stop = free[2]
    (output,) = llm.generate([9, 9], SamplingParams(temperature=0, max_tokens=24, stop_token_ids=[stop]))
    assert output.outputs[0].token_ids == free[: free.index(stop) + 1]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", stop)
    params = SamplingParams(temperature=0, max_tokens=24, stop_token_ids=[stop], min_tokens=10)
    (held,) = token_ids(llm.generate([9, 9], params))
    assert stop not in held[:10]
    assert len(held) >= 10


# Streams.


def test_a_stream_equals_the_one_shot_text(demo: LLM) -> None:
    for prompt in ("def naïve(", "# 日本語 🎉\n", "import "):
        params = SamplingParams(temperature=1.5, seed=5, max_tokens=60)
        deltas = list(demo.stream(prompt, params))
        (whole,) = demo.generate(prompt, params)
        assert "".join(delta.text for delta in deltas) == whole.outputs[0].text
        assert [token for delta in deltas for token in delta.token_ids] == whole.outputs[0].token_ids
        assert [delta.finished for delta in deltas] == [False] * (len(deltas) - 1) + [True]
        assert deltas[-1].finish_reason == whole.outputs[0].finish_reason


def test_stop_strings_never_leak_into_a_stream(demo: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=60)
    text = demo.generate("def f(", params)[0].outputs[0].text
    stop = text[10:14]
    params = SamplingParams(temperature=0, max_tokens=60, stop=stop)
    deltas = list(demo.stream("def f(", params))
    assert "".join(delta.text for delta in deltas) == text[: text.find(stop)]
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)
    assert demo.generate("def f(", params)[0].outputs[0].text == text[: text.find(stop)]


@pytest.mark.parametrize("how", ["close", "drop", "with"])
def test_a_stream_that_ends_early_is_cancelled_at_once(llm: LLM, how: str) -> None:
    pace = paced(llm)
    stream = llm.stream([1, 2, 3], SamplingParams(max_tokens=100))
    pace.release()
    next(stream)
    assert llm.stats().requests_running == 1
    if how == "close":
        stream.close()
    elif how == "with":
        with stream:
            pass
    else:
        del stream
        gc.collect()
    stats = llm.stats()
    assert (stats.requests_running, stats.blocks_used) == (0, 0)
    llm._core.scheduler.check()
    assert not llm._core._processors


def test_a_closed_stream_is_over(llm: LLM) -> None:
    stream = llm.stream([1, 2, 3], GREEDY)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []


def test_streams_and_batches_share_their_steps(llm: LLM) -> None:
    first, second = llm.stream([1, 2, 3], GREEDY), llm.stream([4, 5], GREEDY)
    got: list[list[int]] = [[], []]
    for _ in range(5):
        got[0] += next(first).token_ids
    batch = token_ids(llm.generate([[7, 8], [9]], GREEDY))
    for index, stream in enumerate((first, second)):
        got[index] += [token for delta in stream for token in delta.token_ids]
    want = [reference_tokens("qwen3", prompt, 24) for prompt in ([1, 2, 3], [4, 5], [7, 8], [9])]
    assert [*got, *batch] == want


def test_eight_threads_get_what_they_would_alone(llm: LLM) -> None:
    wanted = prompts(8, seed=20)
    got: dict[int, list[int]] = {}

    def work(index: int) -> None:
        got[index] = token_ids(llm.generate(wanted[index], GREEDY))[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[index] for index in range(8)] == [reference_tokens("qwen3", prompt, 24) for prompt in wanted]


# Randomness.


def test_seeds_repeat_and_unseeded_equal_prompts_differ(llm: LLM) -> None:
    seeded = SamplingParams(temperature=1.0, seed=-3, max_tokens=12)
    first, second = (token_ids(llm.generate([5, 6], seeded)) for _ in range(2))
    assert first == second
    free = token_ids(llm.generate([[5, 6]] * 4, SamplingParams(temperature=1.0, max_tokens=12)))
    assert len({tuple(ids) for ids in free}) == 4


def test_the_engine_seed_makes_a_run_repeatable() -> None:
    runs = []
    for seed in (1, 1, 2):
        with engine("qwen3", seed=seed) as llm:
            runs.append(token_ids(llm.generate([[5, 6]] * 2, SamplingParams(temperature=1.0, max_tokens=12))))
    assert runs[0] == runs[1] != runs[2]


def test_the_callers_random_state_is_not_moved(llm: LLM) -> None:
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    llm.generate([[1, 2]] * 3, SamplingParams(temperature=1.0, max_tokens=5))
    assert torch.equal(torch.rand(3), want)


# Faults.


def test_non_finite_logits_end_that_request_alone() -> None:
    want = [reference_tokens("qwen3_untied", prompt, 24) for prompt in ([4, 5, 6], [1, 2])]
    poisoned = min({*range(7, 112)} - {token for tokens in want for token in tokens})
    with engine("qwen3_untied") as llm:
        llm._core.runner.open_model.decoder.embed.weight.data[poisoned] = float("nan")
        bad, good = llm.generate([[1, poisoned], [4, 5, 6]], GREEDY)
        assert bad.outputs[0].finish_reason == "error"
        assert isinstance(bad.error, NonFiniteLogits)
        assert token_ids([good, *llm.generate([1, 2], GREEDY)]) == want


def test_a_fault_in_a_step_is_raised_and_the_next_request_works(llm: LLM) -> None:
    launch = llm._core.runner.launch
    with held(llm):
        stream, handle = llm.stream([1, 2, 3], GREEDY), llm.submit([6], GREEDY)
        llm._core.runner.launch = broken  # type: ignore[method-assign]
    for wait in (handle.result, lambda: list(stream)):
        with pytest.raises(OstinatoError, match="a step of 2 requests failed: ZeroDivisionError: injected"):
            wait()
    with pytest.raises(OstinatoError, match="a step of 1 requests failed: ZeroDivisionError: injected"):
        llm.generate([4, 5], GREEDY)
    llm._core.runner.launch = launch  # type: ignore[method-assign]
    assert llm.stats().blocks_used == 0
    assert token_ids(llm.generate([4, 5], GREEDY)) == [reference_tokens("qwen3", [4, 5], 24)]


def broken(step: object) -> Any:
    raise ZeroDivisionError("injected")


def test_ctrl_c_in_a_batch_leaves_other_requests_intact(llm: LLM) -> None:
    pace = paced(llm)
    stream = llm.stream([1, 2, 3], GREEDY)
    pace.release()
    got = next(stream).token_ids
    with pytest.raises(KeyboardInterrupt), ctrl_c_when(lambda: llm.stats().requests_waiting == 2):
        llm.generate([[4, 5], [6]], GREEDY)
    assert (llm.stats().requests_running, llm.stats().requests_waiting) == (1, 0)
    pace.release(100)
    got += [token for delta in stream for token in delta.token_ids]
    assert got == reference_tokens("qwen3", [1, 2, 3], 24)


@pytest.mark.parametrize("wait", ["stream", "result"])
def test_ctrl_c_ends_the_wait_at_once_and_a_stream_with_it(llm: LLM, wait: str) -> None:
    paced(llm)  # no step will ever run
    handle = llm.stream([1, 2, 3], GREEDY)

    def waits() -> bool:
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        return {"_next", "result"} & {frame.f_code.co_name for frame, _ in traceback.walk_stack(frame)} != set()

    with pytest.raises(KeyboardInterrupt), ctrl_c_when(waits):
        next(handle) if wait == "stream" else handle.result()
    assert llm.stats().requests_waiting == (0 if wait == "stream" else 1)
    handle.close()
    assert llm.stats().requests_waiting == 0


@pytest.mark.parametrize("seed", range(6))
def test_interrupts_anywhere_cost_others_nothing(llm: LLM, seed: int) -> None:
    """An interrupt strikes between any two lines of the engine's own bookkeeping, again and again."""
    draw = random.Random(seed)
    remaining, strikes = [0], [0]

    def strike(frame: Any, event: str, _: Any) -> Any:
        if event == "line" and frame.f_code.co_filename.endswith(("scheduler.py", "block_pool.py")):
            remaining[0] -= 1
            if remaining[0] == 0:
                strikes[0] += 1
                raise KeyboardInterrupt
        return strike

    for _ in range(25):
        prompt = [draw.randrange(112) for _ in range(draw.randint(1, 30))]
        stream = llm.stream(prompt, GREEDY)
        got = [token for _ in range(3) for token in next(stream).token_ids]
        remaining[0] = draw.randint(1, 900)
        step = llm._core.step

        def step_traced(step: Any = step) -> None:
            sys.settrace(strike)
            try:
                step()
            finally:
                sys.settrace(None)

        llm._core.step = step_traced  # type: ignore[method-assign]
        outputs = llm.generate([[1, 2, 3], [4, 5]], SamplingParams(temperature=0, max_tokens=4))
        llm._core.step = step  # type: ignore[method-assign]
        assert token_ids(outputs) == [reference_tokens("qwen3", prompt, 4) for prompt in ([1, 2, 3], [4, 5])]
        got += [token for delta in stream for token in delta.token_ids]
        assert got == reference_tokens("qwen3", prompt, 24)
    assert strikes[0] > 5
    stats = llm.stats()
    assert (stats.requests_running, stats.requests_waiting, stats.blocks_used) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_ctrl_c_anywhere_in_a_callers_own_code_leaves_nothing_behind(llm: LLM, seed: int) -> None:
    """It strikes between any two lines of what the calling thread runs, from the submission to the output.

    But not as a ``with`` takes or releases a lock, where no signal is looked for.
    """
    draw, remaining, strikes = random.Random(seed), [0], 0
    files = ("llm.py", "handle.py", "engine_thread.py", "ticket.py", "submission.py", "prompts.py")

    def strike(frame: Any, event: str, _: Any) -> Any:
        locks = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")
        if event == "line" and frame.f_code.co_filename.endswith(files) and not locks:
            remaining[0] -= 1
            if remaining[0] == 0:
                raise KeyboardInterrupt
        return strike

    for turn in range(40):
        remaining[0] = draw.randint(1, 120)
        sys.settrace(strike)
        try:
            if turn % 2:
                llm.generate([[1, 2, 3], [4, 5]], SamplingParams(temperature=0, max_tokens=4))
            else:
                with llm.stream([1, 2, 3], GREEDY) as stream:
                    next(stream)
        except KeyboardInterrupt as interrupt:
            strikes += 1
            interrupt.__traceback__ = None  # it holds what the frames hold
        finally:
            sys.settrace(None)
        stream = None
        stats = llm.stats()
        assert (stats.requests_running, stats.requests_waiting, stats.blocks_used) == (0, 0, 0)
    assert strikes > 10
    assert token_ids(llm.generate([4, 5], GREEDY)) == [reference_tokens("qwen3", [4, 5], 24)]


def test_a_text_that_cannot_be_made_ends_its_request_alone(demo: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=0, max_tokens=6)
    (want,) = token_ids(demo.generate("import os", params))
    with held(demo):
        stream = demo.stream("def f(", params)
        monkeypatch.setattr(stream.ticket.processor, "push", broken)
    assert token_ids(demo.generate("import os", params)) == [want]
    with pytest.raises(OstinatoError, match="its text could not be made"):
        list(stream)


def test_a_waiting_stream_leaves_others_their_turns() -> None:
    with engine("qwen3", max_num_seqs=1) as llm:
        pace = paced(llm)
        first = llm.stream([1, 2], SamplingParams(temperature=0, max_tokens=100))
        pace.release()
        next(first)
        second = llm.stream([3], GREEDY)
        waiting = threading.Thread(target=lambda: next(second))
        waiting.start()
        assert (llm.stats().requests_running, llm.stats().requests_waiting) == (1, 1)
        first.close()
        pace.release(200)
        waiting.join(timeout=20)
        assert not waiting.is_alive()


# Closing.


def test_a_closed_engine_says_so() -> None:
    llm = engine("qwen3")
    stream = llm.stream([1], GREEDY)
    next(stream)
    llm.close()
    llm.close()
    assert [delta.finish_reason for delta in stream][-1:] == ["abort"]
    for call in (lambda: llm.generate([1]), lambda: llm.stream([1]), llm.stats):
        with pytest.raises(EngineDead, match="closed"):
            call()


def test_close_lets_go_of_the_model_and_the_cache() -> None:
    import weakref

    llm = engine("qwen3", execution="emulate")
    model = llm._core.runner.open_model
    watched = [weakref.ref(model.decoder), weakref.ref(model.kv_cache[0][0])]
    del model
    llm.close()
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


# Bad input: a clear error, and nothing else harmed.


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([[]], "no tokens"),
        ([1, 112], "token id at 1 is 112; the model's vocabulary is 0 to 111"),
        ([-1], "token id at 0 is -1"),
        ([1, True], "token id at 1 is True, a bool"),
        ([1, 2.0], "token id at 1 is 2.0, a float"),
        ([[1], None], "expected str or token ids, got NoneType"),
        (7, "got int"),
        (np.array(5), "got ndarray"),
        ([torch.tensor(1.5)], "expected an integer"),
        (torch.tensor(3), "got Tensor"),
        (b"x", "got bytes"),
        ({"prompt": "x"}, "got dict"),
        ("text", "no tokenizer"),
        ([1, "a"], "token id at 1 is 'a', a str"),
    ],
)
def test_bad_prompts_are_refused_and_others_untouched(llm: LLM, prompt: Any, message: str) -> None:
    stream = llm.stream([1, 2, 3], GREEDY)
    next(stream)
    with pytest.raises(ParamError, match=message):
        llm.generate(prompt)
    assert llm.stats().requests_waiting == 0
    assert len([token for delta in stream for token in delta.token_ids]) == 23


def test_one_bad_prompt_of_many_keeps_none(llm: LLM) -> None:
    with pytest.raises(PromptTooLong):
        llm.generate([[1, 2], list(range(100)) * 2], GREEDY)
    assert (llm.stats().requests_waiting, llm.stats().steps) == (0, 0)


def test_bad_sampling_params_are_refused(llm: LLM) -> None:
    with pytest.raises(ParamError, match="2 given for 1 prompts"):
        llm.generate([[1]], [GREEDY, GREEDY])
    with pytest.raises(ParamError, match="expected SamplingParams"):
        llm.generate([1], {"temperature": 0})  # type: ignore[arg-type]
    with pytest.raises(ParamError, match="112 is no token"):
        llm.generate([1], SamplingParams(stop_token_ids=[112]))
    with pytest.raises(ParamError, match="takes one prompt, got 2"):
        llm.stream([[1], [2]])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seq": 4}, "unknown option 'max_num_seq'; did you mean 'max_num_seqs'"),
        ({"trust_remote_code": True}, "unknown option 'trust_remote_code'"),
        ({"max_num_seqs": 0}, "max_num_seqs: expected an integer from 1"),
        ({"max_num_seqs": True}, "max_num_seqs"),
        ({"max_num_batched_tokens": 3}, "max_num_batched_tokens = 3 is less than max_num_seqs = 4"),
        ({"max_model_len": 100_000}, "max_model_len = 100,000 is more than the checkpoint's max_position_embeddings"),
        ({"kv_cache_memory": "2 gigs"}, "kv_cache_memory: expected bytes"),
        ({"kv_cache_memory": "100TiB"}, "is more than the .* that are free"),
        ({"kv_cache_memory": "9" * 400}, "kv_cache_memory: expected an integer"),
        ({"max_num_seqs": 10**5000}, "max_num_seqs: expected an integer"),
        ({"max_num_seqs": np.array([1, 2])}, "max_num_seqs: expected an integer"),
        ({"capture_sizes": np.array([])}, "capture_sizes: expected sizes"),
        ({"kv_cache_memory": 1000}, "one request of 128 tokens needs .* kv_cache_memory gives"),
        ({"execution": "jit"}, "execution: expected one of 'graph', 'compile', 'eager', 'emulate', got 'jit'"),
        ({"dtype": "int8"}, "dtype: expected one of"),
        ({"device": "tpu"}, "device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        ({"capture_sizes": [0]}, "capture_sizes: expected an integer from 1 to 4, got 0"),
        ({"capture_sizes": [9]}, "capture_sizes: expected an integer from 1 to 4, got 9"),
        ({"block_size": "16"}, "block_size: expected an integer"),
        ({"attention_backend": "flashinfer"}, "attention_backend: expected one of 'auto', 'triton', 'flash', 'torch'"),
        ({"prefill_capture_sizes": [0]}, "prefill_capture_sizes: expected an integer from 1 to 2,048, got 0"),
        ({"prefill_capture_sizes": [4096]}, "prefill_capture_sizes: expected an integer from 1 to 2,048, got 4"),
        ({"prefill_capture_sizes": "16"}, "prefill_capture_sizes: expected sizes"),
        ({"debug": 1}, "debug: expected True or False"),
        ({"enable_prefix_caching": "no"}, "enable_prefix_caching: expected True or False"),
        ({"revision": "main"}, "revision"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine("qwen3", **options)


def test_memory_that_went_since_the_plan_was_made_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("ostinato.kv_memory.allocate_kv_cache", full)
    with pytest.raises(ConfigError, match=r"kv_cache_memory: there is no room for .*iB on cpu any more: CUDA out of"):
        engine("qwen3", kv_cache_memory="1MiB")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(ConfigError, match="sees no CUDA device"):
        engine("qwen3", device="cuda")


def test_missing_and_foreign_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="found nothing there"):
        LLM(str(tmp_path / "nowhere"))
    with pytest.raises(ModelLoadError, match=r"config\.json: no such file"):
        LLM(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    with pytest.raises(
        ModelLoadError, match=r"expected one of .*LlamaForCausalLM.* got 'MambaForCausalLM'; and as a last resort"
    ):
        LLM(tmp_path)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    shutil.copytree(checkpoint("qwen3")[0], tmp_path / "model")
    file = tmp_path / "model/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        LLM(tmp_path / "model", execution="eager")


def test_a_request_larger_than_the_cache_is_refused_with_numbers() -> None:
    with engine("qwen3") as probe:
        block_bytes = probe.plan.block_bytes
    with engine("qwen3", max_model_len=40, kv_cache_memory=11 * block_bytes) as llm:
        assert len(token_ids(llm.generate(list(range(16)), GREEDY))[0]) == 24
        llm._core.scheduler.max_model_len = 64  # a plan never lets this happen: the scheduler's own guard
        with pytest.raises(OutOfBlocks, match="11 KV blocks; the cache has 10"):
            llm.generate(list(range(18)), GREEDY)


# Memory and the plan.


def test_the_plan_shrinks_a_length_that_was_not_asked_for() -> None:
    with engine("qwen3") as probe:
        block_bytes = probe.plan.block_bytes
    with engine("qwen3", max_model_len=None, kv_cache_memory=9 * block_bytes) as llm:
        assert llm.plan.max_model_len == 33
        assert "max_model_len shrunk from 256 to 33 tokens" in str(llm.plan)
        assert len(token_ids(llm.generate(list(range(9)), GREEDY))[0]) == 24


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2 << 30), ("500MB", 500_000_000), ("1.5 kib", 1536), (4096, 4096)])
def test_memory_is_asked_for_in_bytes(text: str | int, size: int) -> None:
    from ostinato import EngineConfig

    assert EngineConfig("demo", kv_cache_memory=text).kv_cache_memory == size


def test_generation_defaults_are_shown_and_used_only_when_asked(tmp_path: Path) -> None:
    shutil.copytree(checkpoint("qwen3")[0], tmp_path / "model")
    values = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_new_tokens": 7, "pad_token_id": 1}
    values |= {"repetition_penalty": 1.05}
    (tmp_path / "model/generation_config.json").write_text(json.dumps(values))
    with LLM(tmp_path / "model", device="cpu", execution="eager", max_model_len=64) as llm:
        defaults = llm.default_sampling_params
        assert (defaults.temperature, defaults.top_p, defaults.max_new_tokens) == (0.6, 0.95, 7)
        params = defaults.sampling_params(seed=1)
        assert (params.temperature, params.top_k, params.max_tokens, params.seed) == (0.6, 20, 7, 1)
        assert params.repetition_penalty == 1.05
        assert len(token_ids(llm.generate([1], SamplingParams(max_tokens=20)))[0]) == 20


# A machine without a C++ compiler, or with a broken one.


def test_with_a_broken_compiler_it_warns_and_runs_eagerly(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    fails = 'case "$*" in *-c*|*-shared*|*-o*) echo "fatal error: Python.h: No such file" >&2; exit 1;; esac'
    compiler.write_text(f'#!/bin/sh\n{fails}\necho "g++ (GCC) 12.2.0"\n')
    compiler.chmod(0o755)
    code = """
        import warnings
        from ostinato import LLM, SamplingParams
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            llm = LLM("demo", device="cpu", max_num_seqs=2)
        assert any("Python.h" in str(w.message) for w in caught), [str(w.message) for w in caught]
        out = llm.generate("import os", SamplingParams(temperature=0, max_tokens=4))
        assert len(out[0].outputs[0].token_ids) == 4
        assert sum(llm.stats().eager_fallbacks.values()) == 4
        print("fell back")
    """
    environment = os.environ | {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "fell back\n"), done.stderr


def test_without_a_compiler_it_warns_and_runs_eagerly(tmp_path: Path) -> None:
    code = """
        import warnings
        from ostinato import LLM, SamplingParams
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            llm = LLM("demo", device="cpu")
        assert any("runs uncompiled" in str(w.message) for w in caught), [str(w.message) for w in caught]
        out = llm.generate("import os", SamplingParams(temperature=0, max_tokens=4))
        assert len(out[0].outputs[0].token_ids) == 4
        (reason, steps), = llm.stats().eager_fallbacks.items()
        assert "C++" in reason and steps == 4, llm.stats()
        print("fell back")
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "PATH", "CONDA_PREFIX")}
    environment |= {"PATH": str(tmp_path), "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fell back\n"
