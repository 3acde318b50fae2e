"""pytorch#132849: vLLM's longest decode length grows by one per token and is a guard: a compilation per token.

Seen: vLLM under torch.compile compiled anew for each next token.
"""

import torch
from torch import Tensor


def step(query: Tensor, keys: Tensor, max_decode_seq_len: int) -> Tensor:  # FAULT: recompile (either)
    workspace = query.new_zeros(query.shape[0], max_decode_seq_len)  # FAULT: recompile (either)
    workspace += torch.einsum("bh,bth->bt", query, keys[:, :max_decode_seq_len])
    return workspace.softmax(-1).amax(-1)


def make_inputs(batch_size: int, variant: int = 0) -> tuple[Tensor, Tensor, int]:
    torch.manual_seed(variant)
    return torch.randn(batch_size, 8), torch.randn(batch_size, 32, 8), 9 + variant
