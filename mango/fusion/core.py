"""What every fused model is: experts, routers and adapters, how they are built, opened, frozen and routed."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from mango.architectures import describe
from mango.auto import AUTO_CLASSES
from mango.checkpoints import prepared, refuse_other_tensors
from mango.errors import ConfigError
from mango.fusion.adapters import Adapter
from mango.fusion.configuration import MolConfig
from mango.fusion.expert import FusedExpert, Shells
from mango.fusion.output import Routing
from mango.fusion.params import AdapterParams, RouterParams
from mango.fusion.posterior import HeadPosterior
from mango.fusion.registries import ROUTERS
from mango.fusion.routers import CATCH_UP, Router, Selection

TRAINED = frozenset({"routers", "inputs", "outputs", "posterior"})
"""Names of the modules that are trained or fitted; in a model of half precision too their weights are float32."""

ALIGNED_BYTES = 64
"""Where torch lets its own tensors begin."""


class MolPreTrainedModel(PreTrainedModel):
    """Experts, adapters and routers of a fused model; a subclass adds the forward pass of its kind of head.

    Args:
        config: the configuration.
    """

    config: MolConfig
    config_class = MolConfig
    base_model_prefix = ""
    task: ClassVar[str]
    """What this class is for, of :data:`mango.fusion.tasks.SOURCE_TASKS`."""
    shells: ClassVar[Shells]
    """How this class runs parts of its source models."""
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
        if config.task != self.task:
            raise ConfigError(
                f"config.json: task is {config.task!r}, and {type(self).__name__} is for {self.task!r}; open it with "
                f"{AUTO_CLASSES[config.task]}"
            )
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
            parts = describe(source, config.source_task(source))
            sizes = config.bridge_sizes(expert.source) if expert.bridged else None
            fused = FusedExpert(
                expert,
                source,
                parts,
                config.hidden_size,
                adapter_params,
                self.shells,
                anchor=number == 0,
                last=last,
                bridge=sizes,
            )
            experts.append(fused)
            ties |= {
                f"{re.escape(f'experts.{number}.{name}')}$": f"{re.escape(f'experts.{number}.{other}')}$"
                for name, other in fused.ties.items()
            }
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
            self._check_router(router)
        heads = sum(expert.own_tail for expert in experts)
        self.posterior = HeadPosterior(heads) if heads > 1 and any(r.posterior for r in self.iter_routers()) else None
        self._override: Selection | None = None
        self._tied_weights_keys = ties
        if torch.empty(0).device.type != "meta":
            self.to_empty(device=torch.empty(0).device)
        self.post_init()
        self.freeze_experts()

    def freeze_experts(self) -> None:
        """Keep every weight of the source models, and what is fitted and not trained, as it is."""
        for expert in self.experts:
            assert isinstance(expert, FusedExpert)
            for body in expert.bodies:
                body.requires_grad_(False)
            for part in (expert.tail, expert.encoder):
                if part is not None:
                    part.requires_grad_(False)
        if self.posterior is not None:
            self.posterior.requires_grad_(False)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Start what holds weights, and let source models make what they make for all their blocks at once."""
        super().initialize_weights()
        with guard_torch_init_functions():
            for module in self.modules():
                base = getattr(module, "base", None)  # of a span or an encoder
                if isinstance(base, PreTrainedModel):
                    base._init_weights(base)

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
    ) -> Self:
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
        model._align_states()
        return opened if wants_info else model  # type: ignore[no-any-return]

    def _align_states(self) -> None:
        """Copy what lies askew in a mapped file where kernels would sum in another order.

        Those of scans do, and those of a mixture's experts, which a single token of a text may come to.
        """
        parts: list[Any] = []
        for expert in self.experts:
            assert isinstance(expert, FusedExpert)
            parts += [body for body in expert.bodies if expert.encoder is not None or getattr(body, "packed", False)]
            parts += [] if expert.encoder is None else [expert.encoder]
        for parameter in (parameter for part in parts for parameter in part.parameters()):
            if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNED_BYTES:
                parameter.data = parameter.data.clone()

    def get_input_embeddings(self) -> nn.Module:
        """Return the trunk's input embedding."""
        return self._anchor.bodies[0].base.get_input_embeddings()  # type: ignore[no-any-return, union-attr, operator]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Refuse: the embeddings of all experts belong together."""
        raise ConfigError("the embeddings of a fused model cannot be replaced; replace them in the source models")

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the trunk's output projection."""
        tail = self._anchor.tail
        return None if tail is None or tail.head_path is None else tail.model.get_submodule(tail.head_path)

    @property
    def _anchor(self) -> FusedExpert:
        anchor = self.experts[0]
        assert isinstance(anchor, FusedExpert)
        return anchor

    def set_routing(self, how: str | Selection | None) -> None:
        """Override how tokens choose among experts, for evaluation.

        Args:
            how: None for the router's own way; ``"soft"`` for every expert with its weight; ``"hard"`` for the best
                expert of each token with the router's catch-up (16 where it has none) and stickiness; or a selection.
        """
        if how is None or isinstance(how, Selection):
            if how is not None:
                self._check(how)
            self._override = how
        elif how == "soft":
            self._override = Selection()
        elif how == "hard":
            self._override = next((r.hard_selection for r in self.iter_routers()), Selection(k=1, catch_up=CATCH_UP))
        else:
            raise ConfigError(f"routing {how!r} is unknown. Known: soft, hard")

    def _check(self, selection: Selection) -> None:
        count = len(self.layout.experts)
        if selection.k is not None and not 1 <= selection.k <= count:
            raise ConfigError(f"router: k is {selection.k}, but there are {count} experts, the anchor among them")

    def _check_router(self, router: Router) -> None:
        """Refuse a router that cannot decide in this kind of model."""

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


class MolRowModel(MolPreTrainedModel):
    """A fused model whose routers look at whole rows: at a text, or at an image.

    Args:
        config: the configuration.
    """

    @abstractmethod
    def routing_at(self, position: int, **inputs: Tensor) -> Routing:
        """Return what the router of a position decides, without running anything behind it.

        Args:
            position: a position with a choice.
            inputs: what the model's forward pass takes; labels are not looked at.
        """


def source_configs(configs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return configurations as plain values that ``config.json`` can hold, by name."""
    out: dict[str, dict[str, Any]] = {}
    for name, config in sorted(configs.items()):
        values = config.to_dict()
        values.pop("transformers_version", None)
        values["model_type"] = config.model_type
        out[name] = values
    return out
