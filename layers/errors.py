"""Every error ostinato raises on purpose. A leaf: it imports nothing, and every folder may import it.

Re-exported as ``ostinato.errors``. A message names the field, file or tensor, what was expected and what was got.
"""


class OstinatoError(Exception):
    """Root of the tree: ``except OstinatoError`` catches everything raised on purpose."""


class ConfigError(OstinatoError, ValueError):
    """An engine option is unknown, out of range, or contradicts another."""


class ParamError(OstinatoError, ValueError):
    """A request is malformed: a sampling parameter, a prompt, a token id."""


class QueueFull(OstinatoError):
    """As many requests wait as ``max_waiting`` allows: try again later (HTTP 429)."""


class PromptTooLong(ParamError):
    """The prompt leaves no room for one generated token within ``max_model_len``."""


class ModelLoadError(OstinatoError):
    """A checkpoint is missing, broken, or of an unsupported architecture."""


class OutOfBlocks(OstinatoError):
    """A request can never fit into the KV cache, or the pool was asked for more blocks than it has."""


class CaptureError(OstinatoError):
    """A step could not be compiled or captured, or a captured graph was used wrongly."""


class NonFiniteLogits(OstinatoError):
    """The model produced NaN or infinite logits for one request."""


class EngineAsleep(OstinatoError):
    """The engine gave its KV memory back (``sleep``), and was not woken yet."""


class EngineDead(OstinatoError):
    """The engine was closed, or a fault left it unusable; the cause is chained."""
