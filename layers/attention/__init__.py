"""Attention over a paged KV cache: the module, its two paths (decode, varlen), and what a step tells them."""
