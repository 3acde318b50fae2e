"""What a checkpoint is: specs, families, the decoder and its weights. Knows no engine."""
