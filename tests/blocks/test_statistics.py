from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mango.blocks import extract
from mango.blocks.statistics import moments
from mango.checkpoints import ModelSource
from tests.blocks.families import save_model


def test_rows_agree_with_float64_numpy(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "source", "gpt2", dtype=torch.bfloat16)
    row = extract({"m": ModelSource(source=str(folder))}, tmp_path / "store", "reference").table()[1]
    tensors = {
        name.removeprefix("transformer.h.1."): tensor.to(torch.float64).numpy().ravel()
        for name, tensor in load_file(folder / "model.safetensors").items()
        if name.startswith("transformer.h.1.")
    }
    values = np.concatenate(list(tensors.values()))
    assert (row["model"], row["index"], row["block_class"], row["width"]) == ("m", 1, "GPT2Block", 32)
    assert (row["dtype"], row["num_parameters"], row["bytes"]) == ("BF16", values.size, 2 * values.size)
    # Sums of some thousand float64 values in another order differ in the last digits only.
    assert row["norm"] == pytest.approx(np.linalg.norm(values), rel=1e-12)
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-9)
    assert row["std"] == pytest.approx(values.std(), rel=1e-9)
    assert row["max_abs"] == np.abs(values).max()
    for column, part in (("attention_norm", "attn."), ("mlp_norm", "mlp.")):
        own = np.concatenate([value for name, value in tensors.items() if name.startswith(part)])
        assert row[column] == pytest.approx(np.linalg.norm(own), rel=1e-12)


def test_values_that_are_no_numbers_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    rows = extract({"m": ModelSource(source=str(folder))}, tmp_path / "store", "reference").table()
    assert [row["num_nonfinite"] for row in rows] == [0, 0, 3]
    assert all(math.isfinite(row[name]) for row in rows for name in ("norm", "mean", "std", "max_abs", "mlp_norm"))


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), max_size=9), max_size=4))
def test_moments_of_parts_are_those_of_the_whole(parts: list[list[float]]) -> None:
    tensors = [torch.tensor(part, dtype=torch.float32) for part in parts]
    whole = moments([torch.cat(tensors)] if tensors else [])
    split = moments(tensors)
    assert (split.count, split.max_abs, split.num_nonfinite) == (whole.count, whole.max_abs, 0)
    assert split.total == pytest.approx(whole.total, rel=1e-12, abs=1e-9)
    assert split.norm == pytest.approx(whole.norm, rel=1e-12)


def test_nothing_has_moments_of_zero() -> None:
    empty = moments([torch.empty(0, 3)])
    assert (empty.count, empty.norm, empty.mean, empty.std, empty.max_abs) == (0, 0.0, 0.0, 0.0, 0.0)
