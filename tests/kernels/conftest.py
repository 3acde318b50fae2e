"""Kernels run in Triton's interpreter here, which is asked for before any of them is imported."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
