"""The fused model: a causal language model whose positions choose among spans of several pretrained models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache

from mango.architectures import describe
from mango.checkpoints import prepared, refuse_other_tensors
from mango.errors import ConfigError
from mango.fusion.adapters import Adapter
from mango.fusion.cache import FusedCache
from mango.fusion.configuration import MolConfig
from mango.fusion.expert import FusedExpert
from mango.fusion.mixing import IGNORED, mix_logits, mix_losses
from mango.fusion.output import MolOutput, Routing
from mango.fusion.params import AdapterParams, RouterParams
from mango.fusion.registries import ROUTERS
from mango.fusion.routers import Router, Selection
from mango.fusion.shells import Body
from mango.fusion.step import Step

TRAINED = frozenset({"routers", "inputs", "outputs"})
"""Names of the modules that are trained; in a model of half precision too their weights are float32."""


class MolForCausalLM(PreTrainedModel, GenerationMixin):
    """A fused model with a language-modelling head.

    ``h' = sum_e w_e(h) * A_out,e(span_e(A_in,e(h)))`` at each fused position. An expert may span several positions: a
    token that takes it stays with it until it leaves. Experts that start from their own embedding take token ids, and
    experts that end in their own head are mixed as ``log sum_e w_e softmax(head_e(...))``. Experts are frozen; only
    adapters and routers have gradients.

    Args:
        config: the configuration.
    """

    config: MolConfig
    config_class = MolConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = set(TRAINED)  # noqa: RUF012  # declared by the base class
    _no_split_modules = ["Body", "Tail"]  # noqa: RUF012  # declared by the base class

    def __init__(self, config: MolConfig) -> None:
        super().__init__(config)
        self.layout = config.get_layout()
        if not self.layout.experts:
            raise ConfigError("config.json: layout has no experts")
        router_params = RouterParams.model_validate(config.router)
        adapter_params = AdapterParams.model_validate(config.adapter)
        last = self.layout.num_positions
        experts: list[FusedExpert] = []
        ties: dict[str, str] = {}
        for number, expert in enumerate(self.layout.experts):
            source = config.source_config(expert.source)
            parts = describe(source)
            fused = FusedExpert(
                expert, source, parts, config.hidden_size, adapter_params, anchor=number == 0, last=last
            )
            experts.append(fused)
            if parts.tied and fused.own_tail and fused.fronts[0]:
                embedding = parts.embeddings.removeprefix(f"{parts.base_prefix}.")
                ties[f"experts.{number}.tail.model.{parts.head}.weight"] = (
                    f"experts.{number}.bodies.0.base.{embedding}.weight"
                )
        self.experts = nn.ModuleList(experts)
        self.spans: list[tuple[int, int]] = [
            (number, index) for number, expert in enumerate(self.layout.experts) for index in range(len(expert.spans))
        ]
        self._entering = [self.layout.entering(position) for position in range(last)]
        make = ROUTERS[router_params.type]
        self.routers = nn.ModuleDict(
            {
                str(position): make(config.hidden_size, len(entering), router_params.chosen())  # type: ignore[arg-type]
                for position, entering in enumerate(self._entering)
                if len(entering) > 1
            }
        )
        for router in self.iter_routers():
            for chosen in (router.selection, router.training_selection):
                self._check(chosen)
        self._override: Selection | None = None
        self._tied_weights_keys = ties
        if torch.empty(0).device.type != "meta":
            self.to_empty(device=torch.empty(0).device)
        self.post_init()
        self.freeze_experts()

    def freeze_experts(self) -> None:
        """Keep every weight of the source models as it is."""
        for expert in self.experts:
            assert isinstance(expert, FusedExpert)
            for body in expert.bodies:
                body.requires_grad_(False)
            if expert.tail is not None:
                expert.tail.requires_grad_(False)

    def _init_weights(self, module: nn.Module) -> None:
        # Only modules that hold parameters themselves come here. Each knows its start, or is of a standard kind.
        if hasattr(module, "start_weights"):
            start: Any = module.start_weights
            start(self.config.initializer_range)
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike[str], *model_args: Any, **kwargs: Any
    ) -> MolForCausalLM:
        """Open a fused checkpoint; like every ``from_pretrained``, but of a local folder everything is checked first.

        Headers, index and configuration are checked before anything is built from them, and every file against the
        folder's manifest, once in a process. No tensor may be missing or left over.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id.
            model_args: passed on.
            kwargs: passed on.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: the tensors are not those that the configuration asks for, or a file is malformed.
            IntegrityError: a file differs from its hash.
            UnsafeFileError: a file was made to mislead, or selects code.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        place = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        with prepared(place) if place.is_dir() else nullcontext():
            opened: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        model, info = opened
        refuse_other_tensors(str(pretrained_model_name_or_path), info)
        model.freeze_experts()  # loading makes new parameters
        return opened if wants_info else model  # type: ignore[no-any-return]

    def get_input_embeddings(self) -> nn.Module:
        """Return the trunk's input embedding."""
        return self._anchor.bodies[0].base.get_input_embeddings()  # type: ignore[no-any-return, union-attr, operator]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refuse: the embeddings of all experts belong together."""
        raise ConfigError("the embeddings of a fused model cannot be replaced; replace them in the source models")

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the trunk's output projection."""
        tail = self._anchor.tail
        return None if tail is None else tail.model.get_submodule(tail.head_path)

    @property
    def _anchor(self) -> FusedExpert:
        anchor = self.experts[0]
        assert isinstance(anchor, FusedExpert)
        return anchor

    def set_routing(self, how: str | Selection | None) -> None:
        """Override how tokens choose among experts, for evaluation.

        Args:
            how: None for the router's own way; ``"soft"`` for every expert with its weight; ``"hard"`` for the best
                expert of each token with the router's catch-up (16 where it has none); or a selection.
        """
        if how is None or isinstance(how, Selection):
            if how is not None:
                self._check(how)
            self._override = how
        elif how == "soft":
            self._override = Selection()
        elif how == "hard":
            catch_up = next((r.selection.catch_up for r in self.iter_routers() if r.selection.k), 16)
            self._override = Selection(k=1, catch_up=catch_up)
        else:
            raise ConfigError(f"routing {how!r} is unknown. Known: soft, hard")

    def _check(self, selection: Selection) -> None:
        count = len(self.layout.experts)
        if selection.k is not None and not 1 <= selection.k <= count:
            raise ConfigError(f"router: k is {selection.k}, but there are {count} experts, the anchor among them")

    def iter_routers(self) -> list[Router]:
        """Return the routers in the order of their positions."""
        return [router for router in self.routers.values() if isinstance(router, Router)]

    def iter_adapters(self) -> list[Adapter]:
        """Return every adapter."""
        return [module for module in self.modules() if isinstance(module, Adapter)]

    def _selection(self) -> Selection:
        if self._override is not None:
            return self._override
        routers = self.iter_routers()
        if not routers:
            return Selection()
        return routers[0].training_selection if self.training else routers[0].selection

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: Tensor | None = None,
        losses_only: bool = False,
        **kwargs: Any,
    ) -> MolOutput:
        """Run the fused model.

        Args:
            input_ids: token ids, ``[rows, length]``.
            attention_mask: which tokens are real, ``[rows, cached + length]``; all without.
            position_ids: true positions, ``[rows, length]``; counted over real tokens without.
            past_key_values: a :class:`FusedCache` that holds what came before.
            use_cache: whether to return a cache.
            labels: token ids to predict, ``[rows, length]``; -100 and padding do not count.
            logits_to_keep: with a number, logits of the last so many tokens only.
            inputs_embeds: refused, since every expert has an embedding of its own.
            losses_only: with labels, return losses and no logits, at less work and memory.
            kwargs: passed to the loss function.

        Returns:
            Loss, logits, cache, and what was routed where.

        Raises:
            ConfigError: the inputs are of a kind that a fused model cannot take.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ConfigError("a fused model takes input_ids, not inputs_embeds: every expert has its own embedding")
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.pop(name, False):
                raise ConfigError(f"{name}: a fused model has several residual streams and does not return them")
        as_tuple = kwargs.pop("return_dict", None) is False
        selection = self._selection()
        cache = self._cache(past_key_values, use_cache)
        if cache is not None:
            cache.begin(selection)
        past = 0 if cache is None else cache.get_seq_length()
        mask = self._mask(attention_mask, input_ids, past, cache)
        present = mask[:, past:]
        if position_ids is None:
            position_ids = (mask.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        position_ids = position_ids.expand(input_ids.shape[0], -1)
        step = Step(self, selection, input_ids, mask, position_ids, cache)
        front = self._anchor.bodies[0]
        assert isinstance(front, Body)
        groups = step.run(front.entrance(input_ids, position_ids), present)
        hard = selection.k == 1
        if cache is not None:
            cache.mask = mask
        targets = None if labels is None else _targets(labels, present)
        routing, counts = tuple(step.routing), step.counts(input_ids.device)
        if losses_only:
            if targets is None:
                raise ConfigError("losses_only: there are no labels")
            losses = mix_losses(groups, torch.nn.functional.pad(targets[:, 1:], (0, 1), value=IGNORED), hard=hard)
            total = losses.sum() / kwargs.get("num_items_in_batch", (targets[:, 1:] != IGNORED).sum())
            return MolOutput(total, None, cache, routing, counts, losses[:, :-1])
        keep = logits_to_keep or input_ids.shape[1]
        logits = mix_logits([group.last(keep) for group in groups], hard=hard)
        loss = None
        if targets is not None:
            loss = self.loss_function(
                logits=logits, labels=targets[:, -keep:], vocab_size=self.config.vocab_size, **kwargs
            )
        output = MolOutput(loss, logits, cache, routing, counts)
        return output.to_tuple() if as_tuple else output  # type: ignore[return-value]

    @torch.no_grad()
    def routing_at(self, input_ids: Tensor, position: int) -> Routing:
        """Return what the router of a position decides, without running anything behind it.

        Args:
            input_ids: token ids, ``[rows, length]``, none of them padding.
            position: a position with a choice.
        """
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        step = Step(self, self._selection(), input_ids, mask, position_ids, None)
        front = self._anchor.bodies[0]
        assert isinstance(front, Body)
        step.run(front.entrance(input_ids, position_ids), mask, until=position)
        return step.routing[-1]

    def _cache(self, given: Cache | None, use_cache: bool | None) -> FusedCache | None:
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

    def _mask(self, attention_mask: Tensor | None, input_ids: Tensor, past: int, cache: FusedCache | None) -> Tensor:
        rows, length = input_ids.shape
        if cache is not None and cache.mask is not None and cache.mask.shape[0] != rows:
            raise ConfigError(f"past_key_values: the cache holds {cache.mask.shape[0]} rows, but input_ids has {rows}")
        if attention_mask is None:
            mask = torch.ones(rows, length, dtype=torch.bool, device=input_ids.device)
            return mask if cache is None or cache.mask is None else torch.cat([cache.mask, mask], 1)
        if attention_mask.shape != (rows, past + length):
            raise ConfigError(
                f"attention_mask has shape {list(attention_mask.shape)}, wanted {[rows, past + length]}: "
                "one column for each cached and each new token"
            )
        return attention_mask.to(device=input_ids.device, dtype=torch.bool)

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise ConfigError(f"cache_implementation {kind!r}: a fused model has a dynamic cache only")
        given = model_kwargs.get("past_key_values")
        if given is not None:
            self._cache(given, True)
        elif generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = FusedCache()


def _targets(labels: Tensor, present: Tensor) -> Tensor:
    """Return labels without those that do not count: padding is not predicted, and nothing is predicted from it."""
    counted = present.clone()
    counted[:, 1:] &= present[:, :-1]
    return labels.masked_fill(~counted, IGNORED)


def source_configs(configs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return configurations as plain values that ``config.json`` can hold, by name."""
    out: dict[str, dict[str, Any]] = {}
    for name, config in sorted(configs.items()):
        values = config.to_dict()
        values.pop("transformers_version", None)
        values["model_type"] = config.model_type
        out[name] = values
    return out
