"""Fused image classifiers: each image is routed once, and heads are mixed as distributions over classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from mango.errors import ConfigError
from mango.fusion.encoders import MolEncoder, refuse_inputs
from mango.fusion.mixing import IGNORED, mix_logits, mix_losses
from mango.fusion.output import MolOutput


class MolForImageClassification(MolEncoder):
    """A fused image classifier: experts are vision encoders with heads for the same classes.

    Args:
        config: the configuration.
    """

    task = "image-classification"
    main_input_name = "pixel_values"
    one_answer_a_row = True

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        losses_only: bool = False,
        **kwargs: Any,
    ) -> MolOutput:
        """Run the fused model.

        Args:
            pixel_values: images, ``[images, channels, height, width]``.
            labels: the class of each image, ``[images]``; -100 where none counts.
            losses_only: with labels, return losses and no logits.
            kwargs: ``num_items_in_batch``, by which the loss is divided in place of the number of labels.

        Returns:
            Loss, logits ``[images, classes]``, and what was routed where.

        Raises:
            ConfigError: the inputs are of a kind that a fused model cannot take.
        """
        as_tuple = refuse_inputs(kwargs)
        if pixel_values is None:
            raise ConfigError("a fused image classifier takes pixel_values: every expert has its own embedding")
        if losses_only and labels is None:
            raise ConfigError("losses_only: there are no labels")
        groups, step = self._run(pixel_values, None)
        # The answer is read off a whole row, and all tokens of a row are routed alike.
        rows = [replace(group, mass=group.mass[:, :1], states=group.states.unsqueeze(1)) for group in groups]
        hard = self._selection().k == 1
        logits = None if losses_only else mix_logits(rows, hard=hard).squeeze(1)
        loss = losses = None
        if labels is not None:
            losses = mix_losses(rows, labels.unsqueeze(1), hard=hard)
            loss = losses.sum() / kwargs.get("num_items_in_batch", (labels != IGNORED).sum().clamp(min=1))
        output = MolOutput(loss, logits, None, tuple(step.routing), step.counts(pixel_values.device), losses)
        return output.to_tuple() if as_tuple else output  # type: ignore[return-value]
