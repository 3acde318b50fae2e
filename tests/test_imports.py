"""What importing costs, and which folder may know which: the rules that keep one package on five folders sound."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"engine": "ostinato"} | {name: f"ostinato.{name}" for name in ("graphs", "layers", "models", "perf")}
HEAVY = ("torch", "numpy", "typer", "transformers", "tokenizers", "safetensors", "huggingface_hub", "jinja2", "rich")
EXTRAS = ("flash_attn", "llguidance", "fastapi", "uvicorn")

# What a folder may import, besides itself. engine reads `ostinato.…` modules of its own and everything below.
MAY_IMPORT = {
    "engine": ("engine", "graphs", "layers", "models"),
    "graphs": ("graphs",),
    "layers": ("layers",),
    "models": ("models", "layers"),
    "perf": ("perf", "engine", "graphs", "layers", "models"),
}


def run_python(code: str, *arguments: str) -> str:
    """Run ``code`` in a fresh interpreter at the repository's root, where a bare ``import engine`` would succeed."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules() -> Iterator[tuple[str, str, Path]]:
    """Yield (folder, module name, path) of everything that ships."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield folder, ".".join([package, *parts]).removesuffix(".__init__"), path


def imports(name: str, path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Yield (statement, absolute name) for each name a module imports, anywhere in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)


def folder_of(imported: str) -> str | None:
    """Return the folder that an absolute name lives in, None for other distributions."""
    first, *rest = imported.split(".")
    if first != "ostinato":
        return None
    return rest[0] if rest and rest[0] in FOLDERS and rest[0] != "engine" else "engine"


def test_importing_ostinato_imports_nothing_heavy() -> None:
    code = "import sys, ostinato; dir(ostinato); print([name for name in sys.argv[1:] if name in sys.modules])"
    assert run_python(code, *HEAVY).strip() == "[]"


@pytest.mark.parametrize("name", ["sampling_params", "outputs", "request", "block_pool", "step", "scheduler", "errors"])
def test_deciding_what_runs_needs_neither_torch_nor_numpy(name: str) -> None:
    code = (
        "import sys, importlib as i; i.import_module(sys.argv[1]); print([n for n in sys.argv[2:] if n in sys.modules])"
    )
    assert run_python(code, f"ostinato.{name}", "torch", "numpy", "transformers").strip() == "[]"


def test_importing_every_module_leaves_no_bare_folder_name_behind() -> None:
    code = """
import importlib, sys
folders, extras, names = (argument.split() for argument in sys.argv[1:])
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in extras:
            raise
print([name for name in sys.modules if name.partition(".")[0] in folders])
"""
    names = [name for _, name, _ in modules() if not name.endswith("__main__")]
    assert run_python(code, " ".join(FOLDERS), " ".join(EXTRAS), " ".join(names)).strip() == "[]"


def test_nothing_is_imported_from_a_bare_folder_name() -> None:
    files = [(name, path) for _, name, path in modules()]
    files += [(path.stem, path) for path in sorted((ROOT / "tests").rglob("*.py"))]
    assert [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {imported}"
        for name, path in files
        for node, imported in imports(name, path)
        if imported.partition(".")[0] in FOLDERS and not (isinstance(node, ast.ImportFrom) and node.level)
    ] == []


def test_folders_import_one_way() -> None:
    """engine → models → layers and engine → graphs; the error tree of ``layers`` is everybody's."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {imported}"
        for folder, name, path in modules()
        for node, imported in imports(name, path)
        if (target := folder_of(imported)) is not None
        and target not in MAY_IMPORT[folder]
        and not imported.startswith("ostinato.layers.errors")
        and not (target == "perf" and name == "ostinato.cli")
    ]
    assert wrong == []


def test_the_cli_imports_perf_only_when_a_command_needs_it() -> None:
    assert run_python("import sys, ostinato.cli; print('ostinato.perf' in sys.modules)").strip() == "False"


def test_the_error_tree_imports_nothing() -> None:
    assert list(imports("ostinato.layers.errors", ROOT / "layers" / "errors.py")) == []


def test_every_folder_with_modules_is_named_in_pyproject() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    expected = {
        name if path.name == "__init__.py" else name.rpartition(".")[0]: path.parent.relative_to(ROOT).as_posix()
        for _, name, path in modules()
    }
    assert setuptools["package-dir"] == expected
    assert setuptools["packages"] == sorted(expected)
    assert [folder for folder in sorted(expected.values()) if not (ROOT / folder / "__init__.py").is_file()] == []


def test_no_module_of_engine_hides_a_folder() -> None:
    assert [n for n in FOLDERS if (ROOT / "engine" / n).exists() or (ROOT / "engine" / f"{n}.py").exists()] == []


def test_the_root_is_no_package() -> None:
    assert not (ROOT / "__init__.py").exists()
