"""What every test shares: no network, one compile cache for the whole run, GPU tests only where there is a GPU."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

# Set before anything imports huggingface_hub or torch; subprocesses inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # give one to keep compiled code from run to run
    _compile_cache = tempfile.mkdtemp(prefix="ostinato-tests-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _compile_cache
    atexit.register(shutil.rmtree, _compile_cache, ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    """Let Hypothesis take its time: an example may be the one that imports torch. Asked to end, say what was found."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        import hypothesis
    except ModuleNotFoundError:  # a GPU machine without network has no Hypothesis: its tests fail to import, others run
        return
    hypothesis.settings.register_profile("ostinato", parent=hypothesis.settings.default, deadline=None)
    hypothesis.settings.load_profile("ostinato")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked ``alone`` in a process that nothing else has run in: it measures the process's memory."""
    if pyfuncitem.get_closest_marker("alone") is None or os.environ.get("OSTINATO_TEST_ALONE"):
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", pyfuncitem.nodeid]
    # A fixed threshold: large blocks that are freed go back to the system at once, so that what counts is what is held.
    environment = {**os.environ, "OSTINATO_TEST_ALONE": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(command, cwd=pyfuncitem.config.rootpath, env=environment, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    if " skipped" in done.stdout.splitlines()[-1]:
        pytest.skip("skipped in its own process")
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
