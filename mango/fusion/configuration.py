"""The configuration of a fused model, as ``config.json`` keeps it."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from mango.architectures.tasks import CAUSAL, class_for
from mango.checkpoints import check_configuration
from mango.errors import CheckpointError, ConfigError
from mango.fusion.bridge.module import BridgeSizes
from mango.fusion.layout import Layout
from mango.fusion.params import AdapterParams, RouterParams
from mango.fusion.tasks import SOURCE_TASKS, task_of_source


class MolConfig(PretrainedConfig):
    """Configuration of a fused model (``model_type: mol``, modular layers).

    Args:
        sources: the configuration of every source model, by name, as plain values.
        layout: cuts and experts, as :meth:`mango.fusion.Layout.to_dict` gives them.
        router: parameters of the router.
        adapter: parameters of the adapter.
        vocab_size: size of the shared vocabulary.
        hidden_size: width of the trunk.
        task: what it is for, of :data:`mango.fusion.tasks.SOURCE_TASKS`.
        bridges: sizes of the bridge to each source that keeps its own tokenizer, by name, as
            :meth:`mango.fusion.bridge.BridgeSizes.to_dict` gives them.
        kwargs: what every configuration of ``transformers`` takes.
    """

    model_type = "mol"
    keys_to_ignore_at_inference = ["past_key_values", "routing"]  # noqa: RUF012

    def __init__(
        self,
        sources: dict[str, dict[str, Any]] | None = None,
        layout: dict[str, Any] | None = None,
        router: dict[str, Any] | None = None,
        adapter: dict[str, Any] | None = None,
        vocab_size: int = 0,
        hidden_size: int = 0,
        max_position_embeddings: int | None = None,
        tie_word_embeddings: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        initializer_range: float = 0.02,
        task: str = CAUSAL,
        bridges: dict[str, dict[str, int]] | None = None,
        **kwargs: Any,
    ) -> None:
        if task not in SOURCE_TASKS:
            raise ConfigError(f"config.json: task {task!r} is unknown. Known: {', '.join(SOURCE_TASKS)}")
        self.task = task
        self.sources = sources or {}
        self.bridges = bridges or {}
        self.layout = layout or {"cuts": [0], "experts": []}
        self.router = router or RouterParams().model_dump(mode="json")
        self.adapter = adapter or AdapterParams().model_dump(mode="json")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.num_hidden_layers = len(self.layout["cuts"]) - 1
        super().__init__(  # type: ignore[call-arg]  # it takes every keyword
            tie_word_embeddings=tie_word_embeddings,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            **kwargs,
        )
        # Of these, older releases of the base class keep none.
        self.tie_word_embeddings = tie_word_embeddings
        self.bos_token_id, self.eos_token_id, self.pad_token_id = bos_token_id, eos_token_id, pad_token_id

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from the content of a ``config.json``, checked first.

        Args:
            config_dict: the content.
            kwargs: as every configuration of ``transformers`` takes them.

        Raises:
            CheckpointError: the content is not that of a fused model.
            UnsafeFileError: a key selects code, or asks for more than any real model has.
        """
        raw = check_configuration(config_dict, "config.json")
        try:
            return super().from_dict(raw, **kwargs)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise CheckpointError(f"config.json: is not that of a fused model ({error!r}); write it again") from error

    def get_layout(self) -> Layout:
        """Return the cuts and experts."""
        return Layout.from_dict(self.layout)

    def bridge_sizes(self, name: str) -> BridgeSizes:
        """Return how large the tensors of the bridge to a source are.

        Raises:
            CheckpointError: there is no such bridge, or its sizes are none.
        """
        if not isinstance(self.bridges.get(name), dict):
            raise CheckpointError(f"config.json: bridges has no {name!r}, which has a tokenizer of its own")
        return BridgeSizes.from_dict(self.bridges[name])

    def source_task(self, config: PretrainedConfig) -> str:
        """Return what a source model is for, of :data:`mango.architectures.TASKS`.

        Args:
            config: the source model's configuration.
        """
        return task_of_source(self.task, config)

    def source_config(self, name: str) -> PretrainedConfig:
        """Return the configuration of a source model, a new object at each call.

        Raises:
            ConfigError: there is no such source, or its model type is unknown here.
        """
        if name not in self.sources:
            raise ConfigError(
                f"config.json: sources has no {name!r}; it has {', '.join(sorted(self.sources)) or 'none'}"
            )
        values = dict(self.sources[name])
        kind = values.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            raise ConfigError(f"config.json: sources.{name}: the installed transformers has no model type {kind!r}")
        config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(values)
        wanted = self._attn_implementation
        model_class = class_for(config, self.source_task(config))
        if wanted == "sdpa" and not getattr(model_class, "_supports_sdpa", True):
            wanted = "eager"  # as it has when it is opened on its own
        config._attn_implementation = wanted
        return config
