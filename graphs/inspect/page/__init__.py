"""What the tool found as one HTML page: tables and pictures in inline SVG, that load nothing from anywhere.

    write_page(["lint.json", "run.ograph"], "report.html")

Takes the JSON of every command, alone or together; two captures with ``diff=True`` are painted as what came and what
went. The same input gives the same bytes. Knows no torch, and no step: only the data.
"""

from ostinato.graphs.inspect.page.assemble import render, write_page

__all__ = ["render", "write_page"]
