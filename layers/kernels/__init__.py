"""Triton kernels and the operators that launch them. Importing this imports no Triton: the first launch does."""
