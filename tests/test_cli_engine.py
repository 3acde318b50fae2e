"""The command line over real engines: the shipped model, and a tiny checkpoint with a chat template."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from interrupts import reachable
from small_tokenizers import byte_level
from tiny_checkpoints import build

COMMAND = [sys.executable, "-c", "from ostinato.cli import main; main()"]
EAGER = ["--device", "cpu", "--execution", "eager"]


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=120)


def test_generate_prints_text_on_stdout_and_nothing_on_stderr() -> None:
    done = run("generate", "demo", "def read_lines(path):", "--temperature", "0", "--max-tokens", "40", *EAGER)
    assert (done.returncode, done.stderr) == (0, "")
    assert "    " in done.stdout  # Python is indented
    again = run("generate", "demo", "def read_lines(path):", "--temperature", "0", "--max-tokens", "40", *EAGER)
    assert again.stdout == done.stdout


def test_info_does_not_load_and_prints_json() -> None:
    done = run("info", "demo", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)
    assert run("info", "demo").stdout.count("\n") > 8


def test_chat_uses_the_checkpoints_own_template_over_turns(tmp_path: Path) -> None:
    tokenizer = byte_level()
    build("qwen3", tmp_path, vocab_size=tokenizer.get_vocab_size())
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    options = ["--temperature", "0", "--max-tokens", "8", "--stats", *EAGER]
    done = run("chat", str(tmp_path), *options, stdin="hello\nagain\n/exit\n")
    assert done.returncode == 0, done.stderr
    hits = next(line for line in done.stderr.splitlines() if line.startswith("prefix_hits"))
    assert int(hits.split()[1]) > 0  # the second turn begins with the first


def test_mistakes_are_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    broken = tmp_path / "broken"
    build("qwen3", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for arguments in (
        ("generate", str(broken), "--token-ids", "1,2", *EAGER),
        ("generate", str(tmp_path / "nowhere"), "x"),
        ("generate", str(tmp_path), "x"),
        ("generate", "demo", "x", "--temperature", "-1", *EAGER),
        ("generate", "demo", "x", "--execution", "fast"),
        ("generate", "demo", "", *EAGER),
        ("generate", "demo", "x", "--kv-cache-memory", "1KiB"),
        ("generate", "demo", "x" * 20_000, *EAGER),
        ("chat", "demo", *EAGER),
    ):
        done = run(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_ctrl_c_while_generating_ends_cleanly() -> None:
    arguments = ["generate", "demo", "import os", "--max-tokens", "1000", "--ignore-eos", *EAGER]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=reachable,
    )
    assert process.stdout is not None
    process.stdout.read(20)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors
