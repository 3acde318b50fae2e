"""``emulate`` and ``verify``: what a replay computes, against an eager run of the same step."""
