"""What `tiny_checkpoints` builds: the variants of every family, kind by kind, and the forms of their files."""
