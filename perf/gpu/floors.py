"""What the machine allows at best: two rates measured in the run, and the times that follow from them.

decode:  max(weight bytes / read bandwidth, 2 · parameters · batch / FLOP rate) + KV bytes / read bandwidth
prefill: 2 · parameters · tokens / FLOP rate
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ostinato.perf.checkpoints import Size

READ_BYTES = 4 << 30  # many times any L2 cache
MATRIX = 8192
REPEATS = 8


@dataclass(frozen=True)
class Floors:
    """``bandwidth``: bytes read a second; ``flops``: bf16 operations a second, a multiply-add being two."""

    bandwidth: float
    flops: float

    def decode_seconds(self, size: Size, batch: int, context: float) -> float:
        """A decode step of ``batch`` requests with ``context`` tokens each."""
        weights = max(size.weight_bytes / self.bandwidth, 2 * size.num_parameters * batch / self.flops)
        return weights + batch * context * size.kv_bytes_per_token / self.bandwidth

    def prefill_seconds(self, size: Size, tokens: int) -> float:
        """Prompts of ``tokens`` tokens together."""
        return 2 * size.num_parameters * tokens / self.flops

    def workload_seconds(self, size: Size, lengths: Sequence[tuple[int, int]]) -> float:
        """Requests of (tokens in, tokens out): all prompts, then all decoding at once until each has ended."""
        seconds = self.prefill_seconds(size, sum(before for before, _ in lengths))
        for step in range(1, max(out for _, out in lengths)):
            running = [before + step for before, out in lengths if out > step]
            seconds += self.decode_seconds(size, len(running), sum(running) / len(running))
        return seconds

    def as_dict(self) -> dict[str, float]:
        """For a JSON file."""
        return asdict(self)


def measure_floors() -> Floors:
    """Both rates of the current CUDA device, each the best of a few."""
    return Floors(_bandwidth(), _flops())


def _bandwidth() -> float:
    """The rate at which a sum of a few GB reads."""
    import torch

    from ostinato.perf.gpu.timing import event_seconds

    size = min(READ_BYTES, torch.cuda.mem_get_info()[0] // 4)
    values = torch.ones(size // 4, dtype=torch.float32, device="cuda")
    return values.nbytes / min(event_seconds(lambda: values.sum(), REPEATS))


def _flops() -> float:
    """The rate of a product of two large matrices of random numbers in bf16."""
    import torch

    from ostinato.perf.gpu.timing import event_seconds

    left, right = (torch.randn(MATRIX, MATRIX, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * MATRIX**3 / min(event_seconds(lambda: left @ right, REPEATS))
