"""Full collections of cyclic garbage that look at what was made lately, not at all modules and models of a process."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def only_new_garbage() -> Iterator[None]:
    """Within, ``gc.collect()`` passes over what was there before. Where the process has frozen objects: no effect."""
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
