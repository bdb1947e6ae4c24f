"""Where models come from: the default model, folders, GGUF files, the Hugging Face hub."""

from agentcache.adapters.models.default_model import DEFAULT_MODEL
from agentcache.adapters.models.source import LocalModelSource

__all__ = ["DEFAULT_MODEL", "LocalModelSource"]
