"""What `make gpu-check` measures: the targets for a GPU, in parts that fail and end on their own."""
