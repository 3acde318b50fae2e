"""``python -m ostinato.graphs.inspect lint step.py:step``: the graph tool without the rest of ostinato."""

from ostinato.graphs.inspect.cli import main

if __name__ == "__main__":
    main()
