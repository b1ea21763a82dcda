"""How a fused model gets its cache, in a forward pass and in generation."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.cache_utils import Cache

from mango.errors import ConfigError
from mango.fusion.cache import FusedCache
from mango.fusion.shells import Body


class FusedGeneration(nn.Module):
    """Gives a fused model that generates a cache of its own kind."""

    def fused_cache(self, given: Cache | None, use_cache: bool | None) -> FusedCache | None:
        """Return the cache to fill: the one that was given, a new one where one is wanted, or None.

        Args:
            given: what was handed in as ``past_key_values``.
            use_cache: whether one is wanted.

        Raises:
            ConfigError: it is of another kind, or there can be none.
        """
        if given is not None and not isinstance(given, FusedCache):
            raise ConfigError(
                f"past_key_values: a fused model needs a mango.fusion.FusedCache, not a {type(given).__name__}; "
                "pass none, and one is made"
            )
        wanted = given is not None or bool(use_cache)
        if wanted and self.training and any(m.gradient_checkpointing for m in self.modules() if isinstance(m, Body)):
            raise ConfigError(
                "use_cache: gradient checkpointing runs spans twice, which a cache cannot take; pass False"
            )
        if not wanted:
            return None
        return FusedCache() if given is None else given

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise ConfigError(f"cache_implementation {kind!r}: a fused model has a dynamic cache only")
        given = model_kwargs.get("past_key_values")
        if given is not None:
            self.fused_cache(given, True)
        elif generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = FusedCache()
