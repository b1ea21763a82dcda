# ruff: noqa: E501
"""A tiny configuration of any model type: the default one, shrunk by what its fields mean.

Fields are recognised by the words in their names and by their values (a value that equals a hidden size is one), so a
model type that is new needs no line here. What follows from other fields is left to the configuration's own class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

VOCAB = 128
WIDTH = 64
HEADS = 4
HEAD_DIM = WIDTH // HEADS
INNER = 96
POSITIONS = 64
WINDOW = 4
PATCH = 8
IMAGE = 4 * PATCH
EXPERTS = 4
MAX_LAYERS = 8
MAX_PARAMETERS = 60_000_000

_LAYERS = re.compile(r"^((num|n)_)?(\w+_)?(hidden_)?layers?$|^depth$|^num_blocks$|^num_layers_per_stack$")
_KEPT_LAYERS = re.compile(r"feat_extract|conv|adapter_layers|feature_layer|num_layer_|_types$|predictor|wavenet|refine"
                          r"|subsampl|postnet|prenet|fusion|tie_|share_layer|timestamp|add_")  # fmt: skip
_FEW_LAYERS = re.compile(r"shared_layers|window_layers|first_k_dense|dense_layers|nextn|num_kv_shared|mtp")
_HIDDEN = re.compile(r"^(hidden_size|d_model|n_embd|dim|embed_dim|hidden_dim|emb_dim|embedding_dim|decoder_hidden_size"
                     r"|encoder_hidden_size|backbone_hidden_size|model_dim|embedding_size|word_embed_proj_dim)$")  # fmt: skip
_KV_HEADS = re.compile(r"(key_value|kv)_heads$|^num_kv$|num_query_groups")
_KEY_HEADS = re.compile(r"linear_num_key_heads|num_k_heads")
_HEADS = re.compile(r"(^|_)heads?$|^attention_heads$|^num_heads$|^n_head$|^mamba_n_heads$")
_HEAD_DIM = re.compile(
    r"(^|_)head_dim$|attention_head_size$|^d_kv$|^d_head$|dim_head$|head_dim_\w+$|kv_channels$|key_dim$"
)
_INNER = re.compile(r"intermediate_size|intermediate_dim|ffn_dim|^d_ff$|^d_inner$|mlp_dim|ffn_hidden|^dff$|^n_inner$"
                    r"|feed_forward_size|feedforward_dim|dim_feedforward|^dim_ff$|ffn_size|linear_units|^inner_dim$"
                    r"|mlp_hidden|ff_size|expert_dim")  # fmt: skip
_RANK = re.compile(r"(^|_)rank$|dt_rank|lowrank")
_EXPERTS = re.compile(r"^(moe_)?(num|n)_(routed_|local_)?experts?$|num_routed_experts|^num_experts_\w+$|_num_experts$")
_TOP = re.compile(r"experts_per_tok|(^|_)top_?k$|moe_k$|num_selected|experts_per_token|topk_blocks")
_GROUPS = re.compile(r"^n_group$|^topk_group$|^num_expert_groups?$|^num_limited_groups$|expert_group")
_POSITIONS = re.compile(r"position_embeddings$|^n_positions$|^n_ctx$|max_\w*positions$|max_seq_len|max_sequence_length"
                        r"|^max_pos_emb$|max_text_len|model_max_length")  # fmt: skip
_WINDOW = re.compile(r"sliding_window|^attention_window(_size)?$|local_attention(_window_len)?$|^attn_window_size$"
                     r"|attention_chunk_size|attn_chunk_length|keep_window_size|^window_size$|local_window")  # fmt: skip
_PERIOD = re.compile(r"(_period|_interval|_frequency|_freq|_every_n_layers|_every|layer_step|_pattern|_step)$|^every_")
_STATE = re.compile(r"(d_state|state_size|ssm_state_size)$")
_MAMBA_HEAD = re.compile(r"^mamba_(d_head|headdim|head_dim)$")
_SIZES = re.compile(r"(size|dim|width|units|channels?|dims|hidden|features|filters|latents)$|_dim_|_size_|^d_\w+$"
                    r"|_dim$|classes$|_dims$|lru_width")  # fmt: skip
_KEPT_SIZES = re.compile(r"image_size|patch_size|kernel|stride|window|in_channels|num_channels|tubelet|group|^in_chans$"
                         r"|crop_size|grid|merge|pool|temporal|chunk|max_|min_|batch|type_vocab|block_size|tile|scale"
                         r"|conv_size|queue|input_channels|out_channels|codebook_size|shape|frame|state_dim"
                         r"|act_dim|n_mels|mel_bins|downsample|norm|hop|fft|context_size|pos_emb_|latent_query_num|mlp_ratio")  # fmt: skip
_TOKENS = re.compile(r"(token|_|^)(id|ids|index)$")
_INDICES = re.compile(r"(indices|indexes|idxs|index|layers|layer_ids|hook_ids|blocks|layer_idx)$")


@dataclass
class _Tree:
    """What the whole configuration says: hidden sizes of every level, and the new names of token ids."""

    widths: set[int] = field(default_factory=set)
    ids: dict[int, int] = field(default_factory=dict)

    def token(self, value: int) -> int:
        if value < VOCAB:
            return value
        if value not in self.ids:
            self.ids[value] = VOCAB - 1 - len(self.ids)
        return self.ids[value]


def _levels(values: dict[str, Any]) -> list[dict[str, Any]]:
    found = [values]
    for value in values.values():
        if isinstance(value, dict) and "model_type" in value:
            found += _levels(value)
    return found


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _num_layers(values: dict[str, Any], name: str, value: int) -> int:
    """Return two, or as many as it takes to have a block of each kind, twice where that is not too many."""
    kinds = values.get("layer_types") or values.get("layers_block_type") or values.get("block_types")
    if isinstance(kinds, (list, tuple)) and 1 < len(kinds) <= value:
        named = [str(kind) for kind in kinds]
        named = (named * value)[:value]
        firsts = [named.index(kind) for kind in sorted(set(named))]
        seconds = [named.index(kind, first + 1) for kind, first in zip(sorted(set(named)), firsts, strict=True)
                   if kind in named[first + 1 :]]  # fmt: skip
        for wanted in (seconds, firsts):
            if wanted and max(wanted) < MAX_LAYERS and len(wanted) == len(firsts):
                return max(2, max(wanted) + 1)
        return MAX_LAYERS
    stages = values.get("out_indices") or values.get("backbone_out_indices") or ()
    return min(value, max(2, len(stages)))


def _shrunk(values: dict[str, Any], tree: _Tree) -> dict[str, Any]:
    out = dict(values)
    hierarchical = any(
        isinstance(values.get(name), (list, tuple)) and len(values[name]) > 1
        for name in (
            "depths",
            "hidden_sizes",
            "embed_dims",
            "embed_dim",
            "num_heads",
            "block_configs",
            "channels",
            "stage_configs",
            "embed_dim_per_stage",
            "in_channels",
            "stage_in_channels",
            "depth",
        )
    )
    if hierarchical:
        return _shallow(out, tree)
    layers: dict[int, int] = {}
    for name, value in values.items():
        if _is_int(value) and value > 0 and _LAYERS.search(name) and not _KEPT_LAYERS.search(name):
            new = min(value, 1) if _FEW_LAYERS.search(name) else _num_layers(values, name, value)
            if _FEW_LAYERS.search(name) and ("nextn" in name or "kv_shared" in name or "mtp" in name):
                new = 0
            out[name] = new
            if not _FEW_LAYERS.search(name):
                layers[value] = max(layers.get(value, 0), new)
    for name, value in values.items():
        if name in out and out[name] is not value and out[name] != value:
            continue
        if isinstance(value, (list, tuple)) and value:
            out[name] = _list(name, list(value), layers, tree.widths)
        elif _is_int(value) and value > 0:
            if not (_LAYERS.search(name) and not _KEPT_LAYERS.search(name)):
                out[name] = _number(name, value, values, tree)
        elif isinstance(value, dict) and "model_type" in value:
            out[name] = _shrunk(value, tree)
    _refit(values, out, layers)
    if "window_size" in out and _is_int(out.get("patch_size")) and _is_int(out.get("spatial_merge_size")):
        out["window_size"] = 2 * out["spatial_merge_size"] * min(out["patch_size"], PATCH)  # windows of whole patches
    if isinstance(out.get("image_grid_pinpoints"), list):
        tiles = [[side // min(map(min, values["image_grid_pinpoints"])) for side in tile]
                 for tile in values["image_grid_pinpoints"]]  # fmt: skip
        size = out["vision_config"]["image_size"]
        out["image_grid_pinpoints"] = [[size * side for side in tile] for tile in tiles if max(tile) <= 2]
    if "image_size" in out and _is_int(out.get("image_size")):
        patch = out.get("patch_size")
        if _is_int(patch):
            out["patch_size"] = min(patch, PATCH)
            out["image_size"] = 4 * out["patch_size"]
        else:
            out["image_size"] = min(out["image_size"], 64)
    return out


def _refit(values: dict[str, Any], out: dict[str, Any], layers: dict[int, int]) -> None:
    """Bring what counts blocks or parts of a head in line with the new sizes."""
    changed = any(old != new for old, new in layers.items())
    if changed and "out_indices" in out:
        out.pop("out_features", None)
        stages = values.get("out_indices") or ()
        depth = max(layers.values())
        out["out_indices"] = list(range(1, depth + 1))[-len(stages) :] if stages else None
    old_dim = values.get("head_dim")
    heads = values.get("num_attention_heads")
    if not _is_int(old_dim) and _is_int(heads) and _is_int(values.get("hidden_size")):
        old_dim = values["hidden_size"] // heads
    for name, value in list(out.items()):
        if isinstance(value, dict) and "model_type" not in value:
            if name == "per_layer_config":
                out[name] = {
                    key: {k: _number(k, v, values, _Tree()) if _is_int(v) else v for k, v in item.items()}
                    for key, item in value.items()
                    if int(key) < max(layers.values(), default=0)
                }
            elif _is_int(old_dim):
                out[name] = _sections(value, old_dim)
        elif name.endswith("section") and isinstance(value, list) and _is_int(old_dim):
            out[name] = _sections({name: value}, old_dim)[name]


def _sections(value: dict[str, Any], old_dim: int) -> dict[str, Any]:
    """Scale lists that share out the rotary part of a head, keeping their sum a fraction of the head."""
    out = dict(value)
    for name, item in value.items():
        if isinstance(item, dict):
            out[name] = _sections(item, old_dim)
        elif (
            str(name).endswith("section") and isinstance(item, (list, tuple)) and item and all(_is_int(v) for v in item)
        ):
            total = max(1, sum(item) * HEAD_DIM // old_dim)
            shares = [total * v // sum(item) for v in item]
            for index in sorted(range(len(item)), key=lambda i: -(total * item[i] % sum(item))):
                if sum(shares) < total:
                    shares[index] += 1
            out[name] = shares
    return out


def _shallow(values: dict[str, Any], tree: _Tree) -> dict[str, Any]:
    """Shrink the depth alone: widths that grow from stage to stage hang together in ways that only the model knows."""
    out = dict(values)
    for name, value in values.items():
        if name in {"depths", "num_block_repeats", "blocks_per_stage", "depth"} and isinstance(value, (list, tuple)):
            out[name] = [min(number, 2) for number in value]
        elif name in {"num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers"} and _is_int(value):
            out[name] = min(value, 2) if not isinstance(values.get("depths"), list) else value
        elif _is_int(value) and _TOKENS.search(name):
            out[name] = tree.token(value)
        elif _is_int(value) and name.endswith("vocab_size"):
            out[name] = min(value, VOCAB)
        elif _is_int(value) and name in {"num_queries", "two_stage_num_proposals", "num_denoising"}:
            out[name] = min(value, 8)
        elif isinstance(value, dict) and "model_type" in value:
            out[name] = _shrunk(value, tree)
    if "depths" in out and out["depths"] != values["depths"] and "out_indices" in out:
        pass  # stages stay as many as they were
    return out


def _list(name: str, value: list[Any], layers: dict[int, int], widths: set[int]) -> list[Any]:
    if len(value) in layers and not (
        _INDICES.search(name)
        and all(_is_int(v) for v in value)
        and value == sorted(set(value))
        and value[0] in (0, 1)
        and len(value) > 2
    ):
        kept = value[: layers[len(value)]]
        if all(_is_int(v) for v in kept):
            kept = [_number(name.removesuffix("_per_layer"), v, {}, _Tree()) if v > 1 else v for v in kept]
        return kept
    if layers and all(_is_int(v) for v in value) and _INDICES.search(name) and not _TOKENS.search(name):
        most = max(layers.values())
        if value == sorted(set(value)) and value[-1] >= most:
            inside = [v for v in value if 0 <= v < most]
            return inside or [most - 1]
    if name == "conv_dim" or (
        len(set(map(str, value))) == 1 and _is_int(value[0]) and value[0] in widths and _SIZES.search(name)
    ):
        return [WIDTH] * len(value)
    if name == "attention_types":
        return [[value[0][0], 1]]
    return value


def _number(name: str, value: int, level: dict[str, Any], tree: _Tree) -> int:
    if _TOKENS.search(name) and not name.endswith("layer_idx"):
        return tree.token(value)
    rules: list[tuple[re.Pattern[str], Callable[[], int]]] = [
        (re.compile(r"vocab_size|^vocab_size_per_layer_input$|^num_embeds$|hash_buckets"), lambda: min(value, VOCAB)),
        (_HIDDEN, lambda: WIDTH),
        (_MAMBA_HEAD, lambda: _mamba_head(level)),
        (re.compile(r"qk_head_dim"), lambda: 2 * HEAD_DIM),
        (_HEAD_DIM, lambda: _head_dim(level, value)),
        (_KV_HEADS, lambda: HEADS if value >= _most_heads(level) else min(2, value)),
        (_KEY_HEADS, lambda: 2),
        (_HEADS, lambda: min(value, HEADS) if value < HEADS else HEADS),
        (_INNER, lambda: INNER),
        (_RANK, lambda: min(value, 8)),
        (_TOP, lambda: min(value, 2)),
        (_GROUPS, lambda: 1),
        (_EXPERTS, lambda: min(value, EXPERTS)),
        (_POSITIONS, lambda: min(value, POSITIONS)),
        (_WINDOW, lambda: WINDOW if value > WINDOW * 4 else value),
        (
            _PERIOD,
            lambda: value if "layers_block_type" in level and "hybrid" in level["layers_block_type"] else min(value, 2),
        ),
        (_STATE, lambda: min(value, 8)),
        (re.compile(r"^(mamba_)?n_groups$|mamba_n_groups|^mamba_ngroups$"), lambda: min(value, 2)),
        (re.compile(r"(mamba_)?chunk_size$"), lambda: min(value, 8)),
        (re.compile(r"num_mel_bins|^n_mels$|input_feat_per_channel|^mel_dim$|n_mel_bins"), lambda: min(value, 16)),
        (re.compile(r"num_conv_pos_embeddings$"), lambda: min(value, 16)),
        (re.compile(r"^num_queries$|num_detection_tokens|num_query_tokens|two_stage_num"), lambda: min(value, 8)),
        (re.compile(r"query_pre_attn_scalar"), lambda: HEAD_DIM),
        (re.compile(r"^rotary_dim$"), lambda: 4),
        (re.compile(r"^index_topk$"), lambda: 4),
        (re.compile(r"^index_kpool$"), lambda: 2),
        (re.compile(r"^context_size$"), lambda: min(value, 16)),
        (re.compile(r"^upsample_groups$"), lambda: WIDTH),
        (re.compile(r"attn_layer_offset$|attention_layer_offset$|layer_offset$"), lambda: min(value, 1)),
    ]
    for pattern, new in rules:
        if pattern.search(name):
            return new()
    if value in tree.widths and _SIZES.search(name) and not _KEPT_SIZES.search(name):
        return WIDTH
    for width in sorted(tree.widths):
        if value in (2 * width, 3 * width) and _SIZES.search(name) and not _KEPT_SIZES.search(name):
            return value // width * WIDTH
    if value > WIDTH and _SIZES.search(name) and not _KEPT_SIZES.search(name):
        return WIDTH
    return value


def _mamba_head(level: dict[str, Any]) -> int:
    heads = next(
        (level[k] for k in ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads") if _is_int(level.get(k))), HEADS
    )
    inner = level.get("mamba_expand", level.get("expand", 2)) * WIDTH
    if _is_int(level.get("mamba_d_ssm")):
        inner = WIDTH
    return int(inner) // min(heads, HEADS)


def _head_dim(level: dict[str, Any], value: int) -> int:
    if "num_attention_heads" not in level and "expand" in level:
        return int(level["expand"]) * WIDTH // HEADS
    width, heads = level.get("hidden_size"), level.get("num_attention_heads")
    if (
        _is_int(width)
        and _is_int(heads)
        and value * heads == 2 * width
        and "hybrid_layer_ids" in level | {"hybrid_layer_ids": 0}
        and "attention_head_dim" in level
    ):
        return 2 * WIDTH // HEADS
    return HEAD_DIM


def _most_heads(level: dict[str, Any]) -> int:
    heads = [v for k, v in level.items() if _is_int(v) and _HEADS.search(k) and not _KV_HEADS.search(k)]
    return max(heads, default=1)


FILLS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "prediction_length": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": EXPERTS,
    "num_experts": EXPERTS,
    "head_dim": HEAD_DIM,
    "num_key_value_heads": HEADS,
    "attn_layer_indices": [1],
    "full_attn_idxs": [1],
    "sliding_window": WINDOW,
    "intermediate_size": INNER,
    "moe_intermediate_size": INNER,
    "n_shared_experts": 1,
}
"""What a default configuration leaves open although its model cannot be built without it."""

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "bert-generation": {"is_decoder": True},
    **{name: {"decoder_start_token_id": 0} for name in ("longt5", "mt5", "switch_transformers", "t5", "umt5")},
    **{
        name: {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3}
        for name in ("lfm2", "lfm2_moe")
    },
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "xmod": {"default_language": "en_XX"},
    "falcon_h1": {"mamba_d_ssm": WIDTH, "mamba_n_heads": HEADS, "mamba_d_head": HEAD_DIM},
    "hrm_text": {"num_hidden_layers": 16},  # two blocks, in each of the two cycles four times
    "xlstm": {"qk_dim_factor": 1.0},  # what its cache and its blocks make of smaller ones differs
    "inkling2": {"quantization_config": None},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
}
"""Fields of single model types that no rule by name or value finds."""


def tiny_config(model_type: str) -> PretrainedConfig:
    """Return a tiny configuration of a model type.

    Raises:
        Exception: whatever the configuration's class raises at what it is given.
    """
    return _tiny(model_type, {})


def filled_config(model_type: str) -> PretrainedConfig:
    """Return a tiny configuration in which fields that are needed and left open by default have a value."""
    return _tiny(model_type, FILLS)


def _tiny(model_type: str, fills: dict[str, Any]) -> PretrainedConfig:
    default = CONFIG_MAPPING[model_type]()
    values = default.to_dict()
    tree = _Tree()
    for level in _levels(values):
        tree.widths |= {v for k, v in level.items() if _is_int(v) and v > WIDTH and _HIDDEN.search(k)}
    new = _shrunk(values, tree)
    new.update(OVERRIDES.get(model_type, {}))
    for level in _levels(new):
        level.update({name: fill for name, fill in fills.items() if name in level and level[name] is None})
        if fills and isinstance(level.get("rope_parameters"), dict) and "mrope_section" not in level["rope_parameters"]:
            level["rope_parameters"] = {**level["rope_parameters"], "mrope_section": [4, 2, 2]}
        for key in ("transformers_version", "architectures", "_name_or_path"):
            level.pop(key, None)
    return type(default).from_dict(new)


def shallow_config(model_type: str) -> PretrainedConfig:
    """Return a configuration whose widths are the default ones and whose depth is small."""
    default = CONFIG_MAPPING[model_type]()
    tree = _Tree()

    def cut(values: dict[str, Any]) -> dict[str, Any]:
        out = _shallow(values, tree)
        for name, value in values.items():
            if isinstance(value, dict) and "model_type" in value:
                out[name] = cut(value)
            elif _is_int(value) and _LAYERS.search(name) and not _KEPT_LAYERS.search(name) and "depths" not in values:
                out[name] = min(value, 2)
        layers = {
            v: out[k]
            for k, v in values.items()
            if _is_int(v) and _is_int(out.get(k)) and out[k] != v and _LAYERS.search(k)
        }
        for name, value in values.items():
            if isinstance(value, (list, tuple)) and value and out[name] is value:
                out[name] = _list(name, list(value), layers, set()) if name != "conv_dim" else value
        return out

    new = cut(default.to_dict())
    for key in ("transformers_version", "architectures", "_name_or_path"):
        new.pop(key, None)
    return type(default).from_dict(new)


def num_parameters(model: Any) -> int:
    """Return the number of a model's parameters."""
    return sum(math.prod(p.shape) for p in model.parameters())
