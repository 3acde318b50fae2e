"""``capture``, ``show``, ``diff``, ``memory``: what is inside of a captured graph."""
