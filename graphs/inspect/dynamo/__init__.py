"""``breaks`` and ``startup``: what torch.compile says of a step, and what its start costs."""
