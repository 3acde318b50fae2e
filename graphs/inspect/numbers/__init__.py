"""``sizes``, ``timeline``, ``check``: figures of files and histograms. Knows no torch."""
