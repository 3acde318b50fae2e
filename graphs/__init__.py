"""Compiling a step, capturing it and replaying it. Knows no model and no engine: any step function will do."""
