"""Listening to a run: the modes, what they know of each call, and where tensors lie."""
