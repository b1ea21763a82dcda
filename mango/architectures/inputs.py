"""Inputs that a model of any family can be run on, made from its configuration and the names of its arguments."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

LENGTH = 6
_FEATURES = (
    "feature_projection_input_dim", "input_feat_per_channel", "num_mel_bins", "input_feat_size", "input_dim", "n_mels",
    "n_mel_bins", "input_size", "feature_size",
)  # fmt: skip


class InputMaker:
    """Makes tensors for the arguments of a model's forward pass.

    Args:
        model: the model.
        batch: number of rows.
        length: number of tokens in a row.
        seed: of the random values.
    """

    def __init__(self, model: PreTrainedModel, *, batch: int = 1, length: int = LENGTH, seed: int = 0) -> None:
        self.model = model
        self.batch = batch
        self.length = length
        self.generator = torch.Generator(device="cpu").manual_seed(seed)
        self.config: PretrainedConfig = model.config
        parameters = inspect.signature(model.forward).parameters
        self.parameters = {
            name: parameter
            for name, parameter in parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }

    def candidates(self) -> Iterator[dict[str, Any]]:
        """Yield sets of arguments, the plainest first; a model runs on one of them or is not run here."""
        main = self.model.main_input_name
        required = [name for name, parameter in self.parameters.items() if parameter.default is inspect.Parameter.empty]
        has = self.parameters.__contains__
        plain = list(dict.fromkeys([*([main] if has(main) else []), *required]))
        text = [name for name in ("input_ids",) if has(name)]
        decoder = [name for name in ("decoder_input_ids",) if has(name)]
        images: list[str] = [
            name for name in ("pixel_values", "input_features", "input_values", "pixel_values_videos") if has(name)
        ]
        if has("bbox") and text:
            text.append("bbox")
            plain.append("bbox")
        orders = [plain, [*plain, *decoder], [*text, *decoder], text, [*text, *images[:1]], images[:1],
                  [*images[:1], *decoder], [*text, *images],
                  [*plain, *(name for name in ("pixel_attention_mask", "spatial_shapes", "visual_feats", "visual_pos",
                                               "flattened_patches", "input_features_mask") if has(name))],
                  ]  # fmt: skip
        seen: set[frozenset[str]] = set()
        for names in orders:
            key = frozenset(names)
            if not names or key in seen:
                continue
            seen.add(key)
            for shape in range(3):
                made: dict[str, Any] | None = {}
                for name in names:
                    value = self.make(name, shape)
                    if value is None:
                        made = None
                        break
                    made[name] = value  # type: ignore[index]
                if made is not None:
                    yield made
                if not any(name in ("input_features", "input_values", "pixel_values") for name in names):
                    break

    def make(self, name: str, shape: int = 0) -> Any:
        """Return a value for an argument, or None where its meaning is not known.

        Args:
            name: name of the argument.
            shape: which of the usual shapes to take, where an argument of that name has several.
        """
        match name:
            case "input_ids" | "decoder_input_ids" | "input_tokens" | "labels":
                return self._ids()
            case "attention_mask" | "decoder_attention_mask" | "qformer_attention_mask":
                return torch.ones(self.batch, self.length, dtype=torch.long)
            case "bbox":
                return torch.zeros(self.batch, self.length, 4, dtype=torch.long)
            case "pixel_values" | "images" | "pixel_values_images":
                return self._pixels(shape)
            case "pixel_values_videos" | "video_pixel_values":
                return self._video()
            case "input_values" | "audio_values" | "waveform" | "padding_mask":
                return self._waveform(shape) if name != "padding_mask" else None
            case "input_features" | "spectrogram" | "audio_features":
                return self._features(shape)
            case "inputs_embeds" | "hidden_states" | "encoder_outputs" | "encoder_hidden_states":
                if name == "hidden_states" and "grid_thw" in self.parameters:
                    return self._patch_rows()
                width = self._number("hidden_size", "d_model") or 32
                return self._normal(self.batch, self.length, width)
            case "past_values":
                return self._normal(
                    self.batch, self._number("context_length") or 32, self._number("num_input_channels") or 1
                )
            case "grid_thw" | "image_grid_thw":
                return torch.tensor([[1, 4, 4]])
            case "merge_sizes" | "image_merge_sizes":
                return torch.tensor([_read(self.config, "spatial_merge_size") or 2])
            case "input_features_mask" | "audio_mel_mask" | "audio_attention_mask":
                return torch.ones(self.batch, 64, dtype=torch.long)
            case "audio_mel":
                return self._features(1)
            case "pixel_attention_mask":
                return torch.ones(self.batch, 16, dtype=torch.long)
            case "spatial_shapes":
                return torch.tensor([[4, 4]] * self.batch)
            case "qformer_input_ids":
                return self._ids()
            case "flattened_patches":
                patch = _read(self._vision_config(), "patch_size") or 16
                return torch.cat([torch.ones(self.batch, 16, 2), self._normal(self.batch, 16, 3 * patch * patch)], -1)
            case "query_embeds":
                return self._normal(self.batch, 4, self._number("hidden_size") or 32)
            case "visual_feats":
                return self._normal(self.batch, 4, self._number("visual_feat_dim") or 2048)
            case "visual_pos":
                return self._normal(self.batch, 4, 4)
            case "return_loss":
                return False
            case _:
                return None

    def _ids(self) -> Tensor:
        table: Any = None
        try:
            table = self.model.get_input_embeddings()
        except (NotImplementedError, AttributeError):
            table = None
        weight = getattr(table, "weight", None)
        most = self._number("vocab_size") or 0
        if isinstance(weight, Tensor) and weight.ndim == 2:
            most = min(most, weight.shape[0]) if most else weight.shape[0]
        most = most or 64
        special = {value for value in self._special() if isinstance(value, int)}
        allowed = [number for number in range(min(most, 512)) if number not in special] or [0]
        picked = torch.randint(len(allowed), (self.batch, self.length), generator=self.generator)
        return torch.tensor(allowed)[picked]

    def _special(self) -> Iterator[Any]:
        levels = [self.config, *_inner_configs(self.config)]
        for level in levels:
            for name, value in vars(level).items():
                if name.endswith(("token_id", "token_index", "_id", "_index")):
                    yield from value if isinstance(value, (list, tuple)) else [value]

    def _patch_rows(self, *, flat: bool = True) -> Tensor:
        config = self._vision_config()
        if _read(config, "patch_size") is None:
            levels = _inner_configs(self.config)
            config = next((level for level in levels if _read(level, "patch_size")), config)
        patch = _read(config, "patch_size") or 14
        channels = _read(config, "in_channels", "num_channels", "in_chans") or 3
        frames = _read(config, "temporal_patch_size") or 1
        if flat:
            return self._normal(16, channels * frames * patch * patch)
        return self._normal(16, channels, patch, patch)

    def _pixels(self, shape: int) -> Tensor:
        config = self._vision_config()
        if any(grid in self.parameters and self.parameters[grid].default is inspect.Parameter.empty
               for grid in ("grid_thw", "image_grid_thw")):  # fmt: skip
            return self._patch_rows(flat=shape != 1)
        if "spatial_shapes" in self.parameters:
            shape = 2
        size = _read(config, "image_size", "img_size", "pretrain_image_size", "crop_size", "max_img_size", "resolution")
        if isinstance(size, dict):
            size = [size.get("height"), size.get("width")]
        height, width = (size, size) if isinstance(size, int) else (tuple(size)[-2:] if size else (64, 64))
        channels = _read(config, "num_channels", "in_channels", "in_chans", "num_image_channels", "input_channels")
        channels = channels if isinstance(channels, int) and channels <= 16 else 3
        frames = _read(config, "num_frames", "frames_per_clip")
        if shape == 1:
            return self._normal(self.batch, frames if isinstance(frames, int) else 2, channels, height, width)
        if shape == 2:
            # Patches in a row, as models that take images of any size read them.
            patch = next((p for c in (config, *_inner_configs(self.config)) if (p := _read(c, "patch_size"))), 1)
            patch = patch if isinstance(patch, int) else patch[-1]
            return self._normal(self.batch, 16, channels * patch * patch)
        return self._normal(self.batch, channels, height, width)

    def _video(self) -> Tensor:
        config = self._vision_config()
        size = _read(config, "image_size", "crop_size") or 64
        size = size if isinstance(size, int) else tuple(size)[-1]
        frames = _read(config, "num_frames", "frames_per_clip") or 4
        return self._normal(self.batch, frames, _read(config, "num_channels", "in_chans") or 3, size, size)

    def _waveform(self, shape: int) -> Tensor:
        strides = _read(self.config, "conv_stride", "upsampling_ratios", "downsampling_ratios") or [320]
        samples = max(2000, 20 * math.prod(strides))
        if shape == 1:
            return self._normal(self.batch, 1, samples)
        if shape == 2:
            bins = _read(self.config, "num_mel_bins") or 128
            return self._normal(self.batch, _read(self.config, "max_length") or 64, bins)
        return self._normal(self.batch, samples)

    def _features(self, shape: int) -> Tensor:
        config = next((c for c in [self.config, *_inner_configs(self.config)] if _read(c, *_FEATURES)), self.config)
        bins = _read(config, *_FEATURES) or 80
        positions = _read(config, "max_source_positions")
        frames = 2 * positions if isinstance(positions, int) else 64
        if shape == 0:
            return self._normal(self.batch, bins, frames)
        if shape == 1:
            return self._normal(self.batch, min(frames, 64), bins)
        return self._normal(self.batch, 1, min(frames, 256), bins)

    def _vision_config(self) -> PretrainedConfig:
        levels = [self.config, *_inner_configs(self.config)]
        return next(
            (c for c in levels if _read(c, "image_size", "img_size", "crop_size", "pretrain_image_size")), self.config
        )

    def _number(self, *names: str) -> int | None:
        for level in (self.config, self.config.get_text_config()):
            value = _read(level, *names)
            if isinstance(value, int) and value > 0:
                return value
        return None

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


def _read(config: Any, *names: str) -> Any:
    for name in names:
        try:
            value = getattr(config, name, None)
        except (RuntimeError, AttributeError):
            continue
        if value is not None and value is not False:
            return value
    return None


def _inner_configs(config: PretrainedConfig) -> list[PretrainedConfig]:
    found: list[PretrainedConfig] = []
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            found += [value, *_inner_configs(value)]
    return found
