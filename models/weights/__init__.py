"""From a checkpoint's files straight into the parameters."""
