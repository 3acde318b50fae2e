"""The engine's thread as a guest: when it starts and ends, what it leaves, forks, exits with work in flight, memory."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref

import pytest
import torch

from engines import GREEDY, checkpoint, engine, held, paced, reference_tokens, token_ids
from ostinato import AsyncLLM, SamplingParams
from ostinato.errors import OstinatoError

LONG = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)


def engine_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ostinato-engine"]


def await_threads(count: int) -> None:
    """Until as many engine threads are there: one that ends by itself needs a moment."""
    latest = time.monotonic() + 30
    while len(engine_threads()) != count and time.monotonic() < latest:
        time.sleep(0.001)
    assert len(engine_threads()) == count


def run_python(code: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """A script over the tiny checkpoint, killed after ``seconds``."""
    script = textwrap.dedent(PREAMBLE) + textwrap.dedent(code)
    command = [sys.executable, "-c", script, str(checkpoint("qwen3")[0])]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


PREAMBLE = """
    import os, sys, threading, time
    from ostinato import LLM, AsyncLLM, SamplingParams
    from ostinato.errors import EngineDead
    LONG = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    def engine():
        return LLM(sys.argv[1], device="cpu", execution="eager", max_num_seqs=4, max_model_len=128, block_size=4)
"""


# Its life.


def test_it_starts_with_the_first_request_and_ends_with_close() -> None:
    llm = engine("qwen3")
    before = threading.enumerate()
    assert engine_threads() == []
    llm.generate([1], GREEDY)
    assert [thread for thread in threading.enumerate() if thread not in before] == engine_threads()
    llm.close()
    assert threading.enumerate() == before


def test_an_engine_that_was_never_used_is_closed_without_a_thread() -> None:
    llm = engine("qwen3")
    model = weakref.ref(llm._core.runner.open_model)
    llm.close()
    assert (model(), engine_threads()) == (None, [])


def test_idle_it_sleeps() -> None:
    with engine("qwen3") as llm:
        llm.generate([1], GREEDY)
        llm.stats()
        (thread,) = engine_threads()
        clock = time.pthread_getcpuclockid(thread.ident or 0)
        used = time.clock_gettime(clock)
        threading.Event().wait(0.3)
        assert time.clock_gettime(clock) - used < 0.001
        frame = sys._current_frames()[thread.ident or 0]
        assert frame.f_code.co_name == "_serve"


@pytest.mark.parametrize("used", ["not", "idle", "busy", "async"])
def test_a_forgotten_engine_goes_with_its_thread(used: str) -> None:
    llm = engine("qwen3")
    watched = [weakref.ref(llm), weakref.ref(llm._core.runner.open_model.decoder)]
    if used == "idle":
        llm.generate([1], GREEDY)
        list(llm.stream([1], GREEDY))
    elif used == "busy":
        handle = llm.submit([1], LONG)
        gc.collect()
        assert watched[0]() is not None
        del handle
    elif used == "async":
        aio = AsyncLLM.of(llm)
        llm.stats()
        del aio
    del llm
    gc.collect()
    await_threads(0)
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def test_a_handle_keeps_its_engine() -> None:
    handle = engine("qwen3").submit([1, 2, 3], GREEDY)
    gc.collect()
    assert handle.result().outputs[0].token_ids == reference_tokens("qwen3", [1, 2, 3], 24)
    del handle
    gc.collect()
    await_threads(0)


def test_a_second_engine_leaves_the_process_as_the_first_did() -> None:
    """What libraries do when they are first imported is over: whatever changes now would be the engine's."""

    def use() -> None:
        with engine("qwen3") as llm:
            llm.generate([[1], [2, 3]], SamplingParams(max_tokens=3))
            next(llm.stream([4], LONG))

    def state() -> list[object]:
        torch_state = torch.get_default_dtype(), torch.get_rng_state().tolist(), torch.get_num_threads()
        tracing = sys.gettrace(), threading.gettrace(), sys.getprofile(), sys.getswitchinterval()
        return [list(warnings.filters), dict(os.environ), logging.getLogger().handlers[:], torch_state, tracing]

    use()
    before = state()
    use()
    assert state() == before


def test_two_engines_run_side_by_side() -> None:
    with engine("qwen3") as one, engine("qwen3_untied") as two:
        handles = [llm.submit([1, 2, 3], GREEDY) for llm in (one, two)]
        assert len(engine_threads()) == 2
        want = [reference_tokens(variant, [1, 2, 3], 24) for variant in ("qwen3", "qwen3_untied")]
        assert token_ids([handle.result() for handle in handles]) == want
        one.close()
        assert token_ids(two.generate([4, 5], GREEDY)) == [reference_tokens("qwen3_untied", [4, 5], 24)]


def test_it_has_the_modes_of_the_thread_that_made_it() -> None:
    def modes() -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            llm, want = engine("qwen3"), modes()
        with llm:
            assert llm._engine.call(modes) == want


def test_what_would_wait_for_itself_says_so() -> None:
    with engine("qwen3") as llm:
        stats = llm._engine.call(llm.stats)
        assert stats.requests_running == 0
        with pytest.raises(OstinatoError, match="would wait for itself"):
            llm._engine.call(lambda: llm.generate([1], GREEDY))
        assert len(llm.generate([1], GREEDY)) == 1


def test_closing_ends_a_wait_in_another_thread() -> None:
    llm = engine("qwen3")
    paced(llm)
    outputs: list[object] = []
    waiting = threading.Thread(target=lambda: outputs.extend(llm.generate([[1], [2]], GREEDY)))
    waiting.start()
    while llm.stats().requests_waiting < 2:
        pass
    llm.close()
    waiting.join()
    assert [output.outputs[0].finish_reason for output in outputs] == ["abort", "abort"]  # type: ignore[attr-defined]


def test_a_loop_that_asks_in_vain_does_not_keep_the_engine_from_its_steps() -> None:
    with engine("qwen3") as llm:
        handle = llm.submit([1, 2, 3], LONG)
        asked = 0
        while not handle.done():
            asked += 1
        assert asked < 100_000, "asking gives way"


# Forks and exits.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_gets_an_error_where_it_would_wait_for_ever() -> None:
    done = run_python(
        """
        with engine() as llm:
            handle, ended = llm.stream([1], LONG), llm.submit([2], SamplingParams(max_tokens=1))
            next(handle), ended.result()
            pid = os.fork()
            if pid == 0:
                for wait in (llm.stats, lambda: llm.generate([1]), lambda: llm.submit([1]), handle.result,
                             lambda: len([*handle])):
                    try:
                        wait()
                    except EngineDead as error:
                        assert "forked" in str(error), error
                    else:
                        print("no error", flush=True)
                assert ended.result().finished
                handle.close()
                llm.close()
                sys.exit(0)
            _, status = os.waitpid(pid, 0)
            print(status, len(llm.generate([3], SamplingParams(max_tokens=5))[0].outputs[0].token_ids))
        """,
        90,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 5\n", "")


EXITS = {
    "streaming": "stream = llm.stream([1], LONG); next(stream)",
    "submitted": "handles = [llm.submit([n], LONG) for n in range(8)]; handles[0].done()",
    "a waiting daemon thread": """
thread = threading.Thread(target=lambda: llm.generate([1], LONG), daemon=True)
thread.start()
while not llm.stats().requests_running: pass
""",
    "a loop that was left": """
import asyncio
async def main():
    global stream
    stream = AsyncLLM.of(llm).stream([1], LONG)
    await anext(stream)
asyncio.run(main())
""",
    "an engine in a global cycle": "llm.me = llm; kept = [llm.submit([1], LONG), llm]",
}


@pytest.mark.parametrize("work", EXITS.values(), ids=EXITS)
def test_the_interpreter_exits_with_work_in_flight(work: str) -> None:
    code = """
    llm = engine()
    step = llm._core.step
    def slow():  # so that there is work to the end
        time.sleep(0.02)
        step()
    llm._core.step = slow
    {work}
    began = time.monotonic()
    class Last:  # among the last things to go
        def __del__(self, write=os.write, monotonic=time.monotonic):
            write(1, b"quick" if monotonic() - began < 2 else b"slow")
    sys.modules["last"] = Last()
    """
    done = run_python(textwrap.dedent(code).replace("{work}", work), 90)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "quick"


def test_ctrl_c_in_a_script_ends_it_as_python_does() -> None:
    done = run_python(
        """
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)
        llm = engine()
        step = llm._core.step
        def slow():
            time.sleep(0.02)
            step()
        llm._core.step = slow
        def strike():
            while not llm.stats().requests_running: pass
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=strike).start()
        llm.generate([1], LONG)
        """,
        90,
    )
    assert done.returncode != 0
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert done.stderr.count("Traceback") == 1


# What it costs in the long run.


@pytest.mark.alone
def test_fifty_engines_one_after_the_other_leave_no_thread_and_no_memory() -> None:
    def cycle() -> None:
        with engine("qwen3") as llm:
            llm.generate([[1, 2, 3], [4]], SamplingParams(max_tokens=3))
            next(llm.stream([4, 5], LONG))

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(10):
        cycle()
    gc.collect()
    threads, tasks, memory = threading.enumerate(), len(os.listdir("/proc/self/task")), resident()
    for _ in range(50):
        cycle()
    gc.collect()
    assert threading.enumerate() == threads
    assert len(os.listdir("/proc/self/task")) == tasks
    assert resident() - memory < 8 << 20


def test_commands_that_are_many_do_not_keep_steps_from_running() -> None:
    with engine("qwen3") as llm:
        with held(llm):
            handle = llm.submit([1, 2, 3], GREEDY)
        while not handle.ticket.ended:
            llm.stats()
        assert handle.result().finished
