"""The benchmark suite and what keeps its results. Only a command of the CLI imports it, lazily."""
