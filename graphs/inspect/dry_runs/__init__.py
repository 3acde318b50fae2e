"""``lint``: what a capture would meet, from runs that capture nothing."""
