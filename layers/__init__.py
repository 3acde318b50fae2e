"""The maths of a transformer and its kernels. Knows no model, no request and no graph."""
