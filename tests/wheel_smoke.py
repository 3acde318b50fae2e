"""Prove that an installed wheel is whole: ``python -I tests/wheel_smoke.py REPOSITORY``, from another folder.

Run by ``.ci/run`` in an environment that holds the wheel and what the wheel declares, nothing else.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

FOLDERS = ("engine", "graphs", "layers", "models", "perf")


def check_files(repository: Path) -> list[str]:
    """Compare the installed files with the sources (measured results stay out); return the names of all modules."""
    files = {str(path) for path in importlib.metadata.files("ostinato") or ()}
    installed = {name for name in files if name.startswith("ostinato/") and "__pycache__" not in name}
    sources = {
        (Path("ostinato") / path.relative_to(repository / "engine" if folder == "engine" else repository)).as_posix()
        for folder in FOLDERS
        for path in (repository / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "results" not in path.parts
    }
    assert installed == sources, f"missing: {sorted(sources - installed)}; unexpected: {sorted(installed - sources)}"
    foreign = {name.partition("/")[0] for name in files} & {*FOLDERS, "tests"}
    assert not foreign, f"the wheel installs {foreign} beside ostinato"
    names = (name.removesuffix(".py").removesuffix("/__init__") for name in sorted(installed) if name.endswith(".py"))
    return [name.replace("/", ".") for name in names]


def check_imports(names: list[str]) -> None:
    """Import every module that needs no extra; the plugin needs pytest."""
    for name in names:
        if not name.startswith("ostinato.perf.") and not name.endswith(("__main__", ".plugin")):
            importlib.import_module(name)


def check_command() -> None:
    """Ask the installed command about the demo model."""
    command = Path(sys.executable).parent / "ostinato"
    done = subprocess.run([command, "info", "demo"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def check_generation() -> None:
    """Generate a few tokens with the demo model."""
    from ostinato import LLM, SamplingParams

    with LLM("demo", device="cpu", execution="eager") as llm:
        (output,) = llm.generate(
            "def read_lines(path):", SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
        )
    assert len(output.outputs[0].token_ids) == 8
    assert output.outputs[0].text
    print(repr(output.prompt + output.outputs[0].text))


def main() -> None:
    """Run every check; the first that fails ends the process."""
    import ostinato

    os.environ["HF_HUB_OFFLINE"] = "1"
    repository = Path(sys.argv[1]).resolve()
    home = Path(ostinato.__file__).resolve()
    assert home.is_relative_to(sys.prefix), f"ostinato came from {home}, not from {sys.prefix}"
    names = check_files(repository)
    check_imports(names)
    check_command()
    check_generation()
    print(f"{len(names)} modules of ostinato {ostinato.__version__} in {home.parent}")


if __name__ == "__main__":
    main()
