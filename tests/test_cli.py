"""The command line, over a stand-in for the engine: what goes where, in which order, and how each way to end ends."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import ostinato
from interrupts import reachable
from ostinato import OutOfBlocks, ParamError, SamplingParams, StreamDelta
from ostinato.cli import app
from ostinato.cli_options import sampling_options
from ostinato.generation_defaults import GenerationDefaults

CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


class FakeLLM:
    """Has the part of LLM that the command line uses; a test says what an answer does."""

    made: list[FakeLLM]  # all of one test
    pieces: list[str | BaseException]  # of every answer: text to stream, or what is raised instead
    init_error: BaseException | None
    tokenizer: object
    default_sampling_params: GenerationDefaults

    def __init__(self, model: str, **options: Any) -> None:
        if self.init_error is not None:
            raise self.init_error
        self.model, self.options, self.closed = model, options, False
        self.asked: list[Any] = []
        self.params: list[SamplingParams] = []
        self.num_cancelled = 0
        self.made.append(self)

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def stats(self) -> str:
        return "steps 3"

    def stream(self, prompt: object, params: SamplingParams) -> Iterator[StreamDelta]:
        self.asked.append(prompt)
        self.params.append(params)
        return self._stream()

    def stream_chat(self, messages: object, params: SamplingParams) -> Iterator[StreamDelta]:
        return self.stream(messages, params)

    def _stream(self) -> Iterator[StreamDelta]:
        done = False
        try:
            for index, piece in enumerate(self.pieces):
                if isinstance(piece, BaseException):
                    raise piece
                yield StreamDelta(0, piece, [index + 7], False, None, None, 0)
            done = True
            yield StreamDelta(0, "", [1], True, "length", None, 0)
        finally:
            self.num_cancelled += not done


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    FakeLLM.made, FakeLLM.pieces, FakeLLM.init_error, FakeLLM.tokenizer = [], ["Hello", ", ", "wörld"], None, object()
    recommended = {"temperature": 0.25, "top_p": 0.5, "max_new_tokens": 99}
    FakeLLM.default_sampling_params = GenerationDefaults.from_json(recommended)
    monkeypatch.setitem(vars(ostinato), "LLM", FakeLLM)
    return FakeLLM


@pytest.fixture
def chat_model(tmp_path: Path) -> str:
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return str(tmp_path)


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def outcome(result: Result) -> tuple[int, str, str]:
    return result.exit_code, result.stdout, result.stderr


# ------------------------------------------------------------------------------------------------------------ generate


def test_generate_streams_the_text_and_nothing_else_to_stdout(fake: type[FakeLLM]) -> None:
    assert outcome(run("generate", "demo", "Hi")) == (0, "Hello, wörld\n", "")
    (llm,) = fake.made
    assert (llm.model, llm.options, llm.asked, llm.params) == ("demo", {"max_num_seqs": 1}, ["Hi"], [SamplingParams()])
    assert llm.closed


def test_each_delta_is_written_before_the_next_is_asked_for(
    fake: type[FakeLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def stream(self: FakeLLM) -> Iterator[StreamDelta]:
        for piece in ("a", "b"):
            events.append(f"make {piece}")
            yield StreamDelta(0, piece, [1], piece == "b", None, None, 0)

    monkeypatch.setattr(FakeLLM, "_stream", stream)
    monkeypatch.setattr("ostinato.cli_stream.put", lambda text: events.append(f"put {text}"))
    run("generate", "demo", "Hi")
    assert events == ["make a", "put a", "make b", "put b", "put \n"]


def test_a_text_that_ends_its_line_gets_no_second_end(fake: type[FakeLLM]) -> None:
    fake.pieces = ["a\n"]
    assert run("generate", "demo", "Hi").stdout == "a\n"


def test_every_sampling_parameter_has_an_option(fake: type[FakeLLM]) -> None:
    given = {
        "temperature": 0.5, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "seed": 7, "max_tokens": 9, "min_tokens": 2,
        "stop": ("x", "y\n"), "stop_token_ids": (3, 4), "ignore_eos": True, "cache_salt": "s",
        "enable_prefix_caching": False, "repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 0.5,
        "allowed_token_ids": (5, 6), "bad_words": ("u", "v"), "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }  # fmt: skip
    not_of_a_text = {"n", "logit_bias", "logits_processors", "logprobs", "prompt_logprobs", "structured_outputs"}
    assert given.keys() == {field.name for field in dataclasses.fields(SamplingParams)} - not_of_a_text
    assert given.keys() == sampling_options.__annotations__.keys() - {"return"}
    options = "--temperature .5 --top-k 5 --top-p .9 --min-p .1 --seed 7 --max-tokens 9 --min-tokens 2 --ignore-eos"
    options += " --repetition-penalty 1.2 --presence-penalty -0.5 --frequency-penalty .5 --allowed-token-ids 5,6"
    more = ["--stop", "x", "--stop", "y\n", "--stop-token-ids", "3,4", "--cache-salt", "s", "--bad-words", "u"]
    more += ["--bad-words", "v", "--include-stop-str-in-output", "--no-skip-special-tokens"]
    result = run("generate", "demo", "Hi", *options.split(), *more, "--no-enable-prefix-caching")
    assert result.exit_code == 0, result.stderr
    assert fake.made[0].params == [SamplingParams(**given)]  # type: ignore[arg-type]


def test_engine_options_reach_the_engine(fake: type[FakeLLM]) -> None:
    options = (
        "--device cpu --dtype float32 --execution eager --max-model-len 64 --kv-cache-memory 2GiB --max-num-seqs 4"
    )
    assert run("generate", "org/name", "Hi", *options.split(), "--revision", "main").exit_code == 0
    assert fake.made[0].options == {
        "device": "cpu", "dtype": "float32", "execution": "eager", "max_model_len": 64, "kv_cache_memory": "2GiB",
        "max_num_seqs": 4, "revision": "main",
    }  # fmt: skip


def test_the_checkpoints_values_are_used_when_asked_for_below_the_users(fake: type[FakeLLM]) -> None:
    assert run("generate", "demo", "Hi", "--defaults", "--top-p", "0.75").exit_code == 0
    assert fake.made[0].params == [SamplingParams(temperature=0.25, top_p=0.75, max_tokens=99)]


def test_statistics_go_to_stderr_at_the_end(fake: type[FakeLLM]) -> None:
    assert outcome(run("generate", "demo", "Hi", "--stats")) == (0, "Hello, wörld\n", "steps 3\n")


def test_token_ids_in_and_out_for_a_checkpoint_without_tokenizer(fake: type[FakeLLM]) -> None:
    fake.tokenizer, fake.pieces = None, ["", ""]
    assert run("generate", "demo", "--token-ids", "5, 6 7").stdout == "7 8 1 \n"
    assert fake.made[0].asked == [[5, 6, 7]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a PROMPT or --token-ids"),
        (["Hi", "--token-ids", "1"], "give a PROMPT or --token-ids"),
        (["--token-ids", "1,x"], "--token-ids: expected token ids as in 1,2,3; got '1,x'"),
        (["--token-ids", ""], "--token-ids: expected token ids"),
        (["Hi", "--stop-token-ids", "a"], "--stop-token-ids: expected token ids"),
        (["Hi", "--top-p", "2"], "top_p must be in (0, 1], got 2.0"),
        (["Hi", "--top-k", "x"], "Invalid value for '--top-k'"),
        (["Hi", "--temprature", "1"], "--temperature"),
        (["Hi", "--max-token", "1"], "--max-tokens"),
        (["Hi", "more"], "more"),
    ],
)
def test_the_users_mistakes_are_one_line_and_exit_2_before_an_engine_is_made(
    fake: type[FakeLLM], arguments: list[str], message: str
) -> None:
    code, stdout, stderr = outcome(run("generate", "demo", *arguments))
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert message in stderr
    assert fake.made == []


# -------------------------------------------------------------------------------------------------------- ways to end


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ParamError("top_k is wrong"), 2, "error: top_k is wrong\n"),
        (ostinato.PromptTooLong("prompt has 9 tokens"), 2, "error: prompt has 9 tokens\n"),
        (ostinato.ConfigError("unknown option 'x'"), 2, "error: unknown option 'x'\n"),
        (ostinato.ModelLoadError("no config.json"), 2, "error: no config.json\n"),
        (OutOfBlocks("needs 9 blocks, has 3"), 2, "error: needs 9 blocks, has 3\n"),
        (ostinato.CaptureError("cannot capture"), 1, "error: cannot capture\n"),
        (ostinato.EngineDead("closed"), 1, "error: closed\n"),
        (RuntimeError("odd"), 1, "error: RuntimeError: odd (unexpected: --debug shows where)\n"),
        (MemoryError(), 1, "error: MemoryError:  (unexpected: --debug shows where)\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
@pytest.mark.parametrize("where", ["start", "stream"])
def test_an_error_is_one_line_and_an_exit_code(
    fake: type[FakeLLM], error: BaseException, code: int, line: str, where: str
) -> None:
    if where == "start":
        fake.init_error = error
    else:
        fake.pieces = ["Hel", error]
    assert outcome(run("generate", "demo", "Hi")) == (code, "" if where == "start" else "Hel", line)
    assert all(llm.closed and llm.num_cancelled == 1 for llm in fake.made)


@pytest.mark.parametrize(
    "arguments", ["--debug generate demo Hi", "generate --debug demo Hi", "generate demo Hi --debug"]
)
def test_debug_anywhere_shows_the_traceback_above_the_line(fake: type[FakeLLM], arguments: str) -> None:
    fake.init_error = ParamError("wrong")
    code, _, stderr = outcome(run(*arguments.split()))
    assert code == 2
    assert stderr.startswith("Traceback (most recent call last)")
    assert stderr.endswith("\nerror: wrong\n")


def test_debug_after_two_dashes_is_a_prompt(fake: type[FakeLLM]) -> None:
    assert run("generate", "demo", "--", "--debug").exit_code == 0
    assert fake.made[0].asked == ["--debug"]


def test_an_unknown_command_is_named_with_the_nearest() -> None:
    code, _, stderr = outcome(run("generat", "demo"))
    assert (code, "'generate'" in stderr, stderr.count("\n")) == (2, True, 1)


def test_no_command_is_help() -> None:
    assert outcome(run()) == outcome(run("--help"))
    assert "generate" in run().stdout


def test_version() -> None:
    assert outcome(run("--version")) == (0, f"ostinato {ostinato.__version__}\n", "")


# --------------------------------------------------------------------------------------------------------------- chat


def test_chat_answers_each_line_in_the_light_of_those_before(fake: type[FakeLLM], chat_model: str) -> None:
    fake.pieces = ["Oh", "."]
    result = run("chat", chat_model, "--system", "Be brief.", "--top-k", "3", stdin="one\n\n  \ntwo\n/exit\nthree\n")
    assert outcome(result) == (0, "Oh.\nOh.\n", "")
    system, one = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}
    answer, two = {"role": "assistant", "content": "Oh."}, {"role": "user", "content": "two"}
    assert fake.made[0].asked == [[system, one], [system, one, answer, two]]
    assert fake.made[0].params == 2 * [SamplingParams(top_k=3, max_tokens=1024)]


@pytest.mark.parametrize(("options", "max_tokens"), [([], 1024), (["--defaults"], 99), (["--max-tokens", "5"], 5)])
def test_chat_has_its_own_max_tokens_where_nobody_says(
    fake: type[FakeLLM], chat_model: str, options: list[str], max_tokens: int
) -> None:
    run("chat", chat_model, *options, stdin="one\n")
    assert fake.made[0].params[0].max_tokens == max_tokens


def test_chat_ends_with_its_input(fake: type[FakeLLM], chat_model: str) -> None:
    assert outcome(run("chat", chat_model, "--stats", stdin="one"))[:2] == (0, "Hello, wörld\n")
    assert fake.made[0].closed


def test_ctrl_c_stops_an_answer_and_keeps_what_was_shown(fake: type[FakeLLM], chat_model: str) -> None:
    fake.pieces = ["Hel", KeyboardInterrupt()]
    assert outcome(run("chat", chat_model, stdin="one\ntwo\n")) == (0, "Hel\nHel\n", "")
    assert fake.made[0].num_cancelled == 2
    assert [message["content"] for message in fake.made[0].asked[1]] == ["one", "Hel", "two"]


def test_a_question_without_an_answer_is_forgotten(fake: type[FakeLLM], chat_model: str) -> None:
    fake.pieces = [KeyboardInterrupt()]
    assert outcome(run("chat", chat_model, stdin="one\ntwo\n")) == (0, "", "")
    assert [message["content"] for message in fake.made[0].asked[1]] == ["two"]


def test_a_piped_conversation_stops_at_an_error(fake: type[FakeLLM], chat_model: str) -> None:
    fake.pieces = [ParamError("prompt has 5,000 tokens")]
    assert outcome(run("chat", chat_model, stdin="one\ntwo\n")) == (2, "", "error: prompt has 5,000 tokens\n")
    assert len(fake.made[0].asked) == 1


def test_chat_with_a_model_without_template_says_so_before_loading(fake: type[FakeLLM], tmp_path: Path) -> None:
    code, _, stderr = outcome(run("chat", str(tmp_path), stdin="one\n"))
    assert (code, "has no chat template; use: ostinato generate" in stderr, fake.made) == (2, True, [])


# --------------------------------------------------------------------------------------------------------------- info

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 100}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@pytest.fixture
def llama(tmp_path: Path) -> str:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", **SIZES, **HEADS}
    config |= {"max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20}')
    return str(tmp_path)


def test_info_needs_no_weights(llama: str) -> None:
    code, stdout, stderr = outcome(run("info", llama, "--max-num-seqs", "2", "--device", "cpu"))
    assert (code, stderr) == (0, "")
    kv_bytes = 2 * 2 * 2 * 16 * 4
    for part in (
        "LlamaForCausalLM",
        "2 layers",
        "parameters",
        "float32",
        f"{kv_bytes} bytes each",
        "2 requests",
        "temperature 0.6",
    ):
        assert part in stdout


def test_info_as_json_has_the_numbers(llama: str) -> None:
    plan = json.loads(run("info", llama, "--json", "--max-num-seqs", "2", "--device", "cpu").stdout)
    layer = 64 * (4 + 2 + 2) * 16 + 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert plan["num_parameters"] == 2 * 100 * 64 + 2 * layer + 64
    assert plan["weight_bytes"] == 4 * plan["num_parameters"]
    assert plan["kv_bytes_per_token"] == 512
    assert plan["kv_cache_bytes"] == plan["num_blocks"] * 16 * 512
    assert (plan["dtype"], plan["device"], plan["config"]["max_num_seqs"]) == ("float32", "cpu", 2)
    assert plan["spec"]["layers"][0]["attention"]["num_heads"] == 4
    assert plan["default_sampling_params"] == {"temperature": 0.6, "top_k": 20}


def test_info_about_nothing_is_an_error(tmp_path: Path) -> None:
    assert run("info", str(tmp_path / "absent")).exit_code == 2
    assert run("info", str(tmp_path)).stderr.startswith("error: ")


# ---------------------------------------------------------------------------------------------- as a process of its own

DRIVER = """
import signal, sys, time
sys.argv[1:] = sys.argv[1:]
import ostinato
from ostinato import StreamDelta

class SlowLLM:
    tokenizer = object()
    def __init__(self, model, **options): print("ready", file=sys.stderr, flush=True)
    def __enter__(self): return self
    def __exit__(self, *_): print("closed", file=sys.stderr, flush=True)
    def stream(self, prompt, params):
        for n in range(400):
            yield StreamDelta(0, f"line {n}\\n", [n], False, None, None, 0)
            time.sleep(0.05)
    stream_chat = stream

vars(ostinato)["LLM"] = SlowLLM
from ostinato.cli import main
main()
"""


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=reachable, **options
    )


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nsys.argv[1:] = ['generate', '--help']\nfrom ostinato.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "heavy = ('torch', 'numpy', 'transformers', 'tokenizers', 'jinja2', 'huggingface_hub', 'ostinato.perf')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "--temperature" in done.stdout
    assert done.stderr.strip() == "[]"


def test_ctrl_c_ends_a_generation_cleanly() -> None:
    process = start("generate", "demo", "Hi")
    assert process.stdout is not None
    assert process.stdout.readline() == "line 0\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "ready\nclosed\n\n")


def test_a_reader_that_goes_away_ends_a_generation_quietly() -> None:
    process = start("generate", "demo", "Hi")
    assert process.stdout is not None
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == "ready\nclosed\n"
    assert process.wait(timeout=30) == 0
    process.stderr.close()


def test_on_a_terminal_ctrl_c_stops_the_answer_and_at_the_prompt_leaves(chat_model: str) -> None:
    main, terminal = pty.openpty()
    process = start("chat", chat_model, stdin=terminal, start_new_session=True)
    assert process.stdout is not None
    os.write(main, b"one\n")
    assert process.stdout.readline() == "line 0\n"
    process.send_signal(signal.SIGINT)
    os.write(main, b"two\n")
    while process.stdout.readline() != "line 0\n":
        pass
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    shown = ""
    while shown.count("> ") < 3:
        shown += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, shown + stderr) == (130, "ready\n> > > closed\n\n")
    assert "Traceback" not in stdout
    os.close(main)
    os.close(terminal)
