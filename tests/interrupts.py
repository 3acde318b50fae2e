"""Child processes that Ctrl-C reaches, however the tests themselves were started."""

from __future__ import annotations

import signal


def reachable() -> None:
    """For ``Popen(preexec_fn=…)``: a shell starts background jobs with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
