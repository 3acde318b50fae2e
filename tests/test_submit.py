"""Handles, limits and the ends of a request: `submit`, `QueueFull`, deadlines, priorities, prompts of each kind."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engines import GREEDY, checked, engine, held, paced, reference_tokens, token_ids
from ostinato import LLM, EngineConfig, SamplingParams
from ostinato.errors import EngineDead, OstinatoError, ParamError, QueueFull

LONG = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
MESSAGES = [{"role": "user", "content": "import os"}]


@pytest.fixture
def llm() -> Iterator[LLM]:
    with engine("qwen3") as llm:
        yield llm


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The demo model, with a chat template."""
    folder = tmp_path_factory.mktemp("demo") / "model"
    shutil.copytree(EngineConfig("demo").resolve().folder, folder)
    template = "{% for message in messages %}# {{ message.role }}: {{ message.content }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    with checked(LLM(folder, device="cpu", dtype="float32", execution="eager")) as llm:
        yield llm


# Handles.


def test_a_result_equals_what_generate_gives(llm: LLM) -> None:
    handle = llm.submit([1, 2, 3], GREEDY)
    assert handle.result().outputs[0].token_ids == reference_tokens("qwen3", [1, 2, 3], 24)
    assert handle.done()
    assert handle.result(timeout=0) == handle.result()


def test_a_result_that_is_not_there_in_time_costs_the_request_nothing(llm: LLM) -> None:
    pace = paced(llm)
    handle = llm.submit([1, 2, 3], GREEDY)
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError, match=f"request 0 has not ended after {timeout} seconds"):
            handle.result(timeout)
    assert not handle.done()
    pace.release(100)
    assert handle.result().outputs[0].token_ids == reference_tokens("qwen3", [1, 2, 3], 24)


def test_a_handle_iterated_late_begins_with_all_that_came_before(llm: LLM) -> None:
    pace = paced(llm)
    handle = llm.submit([1, 2, 3], GREEDY)
    pace.release(5)
    while llm.stats().steps < 5:
        pass
    deltas: list[Any] = []
    reader = threading.Thread(target=lambda: deltas.extend(handle))
    reader.start()
    pace.release(100)
    reader.join()
    assert len(deltas[0].token_ids) >= 5
    assert [token for delta in deltas for token in delta.token_ids] == reference_tokens("qwen3", [1, 2, 3], 24)
    assert [delta.finished for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert list(handle) == []


def test_a_stream_has_one_delta_for_each_step(llm: LLM) -> None:
    assert [len(delta.token_ids) for delta in llm.stream([1, 2, 3], GREEDY)] == [1] * 24


def test_a_cancelled_request_keeps_what_it_had_and_can_be_read(llm: LLM) -> None:
    pace = paced(llm)
    handle = llm.submit([1, 2, 3], LONG)
    pace.release(3)
    while llm.stats().steps < 3:
        pass
    handle.cancel()
    handle.cancel()
    output = handle.result()
    assert output.outputs[0].finish_reason == "abort"
    assert output.outputs[0].token_ids == reference_tokens("qwen3", [1, 2, 3], 24)[:3]
    (delta,) = handle
    assert (delta.finished, delta.finish_reason, len(delta.token_ids)) == (True, "abort", 3)
    pace.release(10)
    assert llm.stats().steps == 3, "it took part in no further step"


@pytest.mark.parametrize("how", ["cancel", "close", "with", "drop"])
def test_whoever_goes_away_is_in_no_further_step(llm: LLM, how: str) -> None:
    pace = paced(llm)
    handle: Any = llm.submit([1, 2, 3], LONG)
    pace.release(2)
    while llm.stats().steps < 2:
        pass
    if how == "with":
        with handle:
            pass
    elif how == "drop":
        del handle
        gc.collect()
    else:
        getattr(handle, how)()
    llm.stats()  # served behind the cancellation
    pace.release(10)
    stats = llm.stats()
    assert (stats.requests_running, stats.requests_waiting, stats.blocks_used, stats.steps) == (0, 0, 0, 2)


def test_numbers_are_in_order_of_submission(llm: LLM) -> None:
    handles = [llm.submit([1], GREEDY) for _ in range(3)]
    assert [handle.request_id for handle in handles] == [0, 1, 2]
    assert [handle.result().request_id for handle in handles] == [0, 1, 2]


def test_what_a_close_ends_says_so(llm: LLM) -> None:
    paced(llm)
    handle = llm.submit([1, 2], GREEDY)
    llm.close()
    assert handle.result().outputs[0].finish_reason == "abort"
    with pytest.raises(EngineDead, match="the engine is closed"):
        llm.submit([1])


def test_a_fault_of_nobody_ends_all_and_closing_still_works(llm: LLM) -> None:
    def broken() -> None:
        raise ZeroDivisionError("injected")

    deliver = llm._core._deliver
    with held(llm):
        handles = [llm.submit([1], LONG), llm.stream([2], LONG)]
        llm._core._deliver = broken  # type: ignore[method-assign]
    for wait in (handles[0].result, lambda: list(handles[1]), llm.stats, lambda: llm.submit([1])):
        with pytest.raises(OstinatoError, match="injected"):
            wait()
    llm._core._deliver = deliver  # type: ignore[method-assign]
    llm.close()


# How many may wait.


def test_more_than_may_wait_are_refused_and_there_is_room_again_later() -> None:
    with engine("qwen3", max_num_seqs=2, max_waiting=1) as llm:
        pace = paced(llm)
        handles = [llm.submit([1, 2], GREEDY) for _ in range(3)]
        message = "3 requests have not ended, 1 more would be over 3: max_num_seqs = 2 run, max_waiting = 1 may wait"
        with pytest.raises(QueueFull, match=message):
            llm.submit([3], GREEDY)
        with pytest.raises(QueueFull):
            llm.generate([[3], [4]], GREEDY)
        assert llm.stats().requests_waiting == 3
        handles[1].cancel()
        handles[1].result()
        handles.append(llm.submit([3], GREEDY))
        pace.release(200)
        assert [handle.result().outputs[0].finish_reason for handle in handles] == [
            "length",
            "abort",
            "length",
            "length",
        ]
        assert len(llm.generate([[1], [2], [3]], GREEDY)) == 3


def test_threads_that_submit_at_once_get_no_more_than_there_is_room_for() -> None:
    with engine("qwen3", max_num_seqs=1, max_waiting=4) as llm:
        paced(llm)
        taken: list[Any] = []
        refused: list[QueueFull] = []

        def submit() -> None:
            try:
                taken.append(llm.submit([1], GREEDY))
            except QueueFull as error:
                refused.append(error)

        threads = [threading.Thread(target=submit) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(taken), len(refused)) == (5, 11)


# Deadlines.


def test_a_deadline_ends_a_running_and_a_waiting_request() -> None:
    with engine("qwen3", max_num_seqs=1) as llm:
        pace = paced(llm)
        first = llm.submit([1, 2, 3], LONG, deadline=0.2)
        second = llm.submit([4, 5], LONG, deadline=0.2)
        free = llm.submit([6], GREEDY, deadline=1000)
        pace.release(2)
        while llm.stats().steps < 2:
            pass
        threading.Event().wait(0.25)  # their deadline passes: time is what this is about
        pace.release(100)
        outputs = [handle.result().outputs[0] for handle in (first, second, free)]
        assert [output.finish_reason for output in outputs] == ["timeout", "timeout", "length"]
        assert outputs[0].token_ids == reference_tokens("qwen3", [1, 2, 3], 24)[:2]
        assert outputs[1].token_ids == []
        assert llm.stats().blocks_used == 0


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf"), True, "1", pytest.param(10**400, id="huge")])
def test_a_deadline_that_is_none_is_refused(llm: LLM, deadline: Any) -> None:
    with pytest.raises(ParamError, match="deadline: expected seconds from now"):
        llm.submit([1], deadline=deadline)


# Priorities.


def test_lower_numbers_go_first_and_equals_in_order_of_arrival() -> None:
    params, admitted = SamplingParams(max_tokens=3, ignore_eos=True), list[int]()
    with engine("qwen3", max_num_seqs=1) as llm:
        launch = llm._core.runner.launch

        def noting(step: Any) -> Any:
            admitted.extend(request.request_id for request in step.requests)
            return launch(step)

        llm._core.runner.launch = noting  # type: ignore[method-assign]
        with held(llm):
            handles = [llm.submit([n], params, priority=p) for n, p in enumerate([2, 0, 2, -1, 0])]
        for handle in handles:
            handle.result()
    assert list(dict.fromkeys(admitted)) == [3, 1, 4, 0, 2]
    assert len(admitted) == 15, "nobody gave way"


@pytest.mark.parametrize("priority", [True, 1.5, "0", None])
def test_a_priority_that_is_none_is_refused(llm: LLM, priority: Any) -> None:
    with pytest.raises(ParamError, match="priority: expected an integer"):
        llm.submit([1], priority=priority)


def test_a_priority_may_be_any_integer(llm: LLM) -> None:
    params = SamplingParams(max_tokens=1)
    for priority in (np.int64(-3), 10**30):
        assert llm.submit([1], params, priority=priority).result().finished


# Prompts.


def test_every_mode_takes_text_ids_and_messages(demo: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6)
    ids = demo.tokenizer.encode("import os")  # type: ignore[union-attr]
    want = demo.generate("import os", params)[0].outputs[0].token_ids
    for prompt in ("import os", ids):
        assert demo.submit(prompt, params).result().outputs[0].token_ids == want
        assert [token for delta in demo.stream(prompt, params) for token in delta.token_ids] == want
    chat = demo.chat(MESSAGES, params)
    one, two = demo.generate([MESSAGES, MESSAGES], params)
    assert token_ids([one, two, *demo.generate(MESSAGES, params)]) == token_ids([chat]) * 3
    assert token_ids([demo.submit(MESSAGES, params).result(), demo.chat("import os", params)]) == token_ids([chat]) * 2
    for stream in (
        demo.stream(MESSAGES, params),
        demo.stream_chat(MESSAGES, params),
        demo.stream_chat("import os", params),
    ):
        assert [token for delta in stream for token in delta.token_ids] == token_ids([chat])[0]


def test_messages_without_a_tokenizer_are_refused(llm: LLM) -> None:
    with pytest.raises(ParamError, match="chat: this checkpoint has no tokenizer"):
        llm.submit(MESSAGES)
