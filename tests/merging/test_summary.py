"""Documents in a few words."""

from __future__ import annotations

from typing import Any

import pytest

from mango.merging.document import parse_mapping
from mango.merging.summary import summarise

TWO = [{"model": "models/a"}, {"model": "models/b"}]


@pytest.mark.parametrize(
    ("data", "method", "models", "parameters"),
    [
        ({"merge_method": "karcher", "models": TWO}, "karcher", ("a", "b"), ""),
        (
            {
                "merge_method": "ties",
                "base_model": "models/base",
                "models": [
                    {"model": "models/base"},
                    {"model": "models/a", "parameters": {"weight": 1, "density": 0.5}},
                    {"model": "models/b", "parameters": {"weight": 1, "density": [0, 0.25]}},
                ],
                "parameters": {"lambda": 0.3, "normalize": True, "int8_mask": True},
            },
            "ties",
            ("a", "b"),
            "weight 1; density a 0.5, b [0, 0.25] over the depth; lambda 0.3; normalize yes; base base",
        ),
        (
            {
                "merge_method": "slerp",
                "base_model": "models/a",
                "models": TWO,
                "parameters": {"t": [{"filter": "mlp", "value": 0.2}, {"value": 0.5}]},
            },
            "slerp",
            ("a", "b"),
            "t 0.2 for mlp or 0.5; base a",
        ),
        (
            {
                "merge_method": [{"filter": "mlp", "value": "linear"}, {"value": "karcher"}],
                "models": TWO,
                "parameters": {"weight": [*({"filter": f".{i}.", "value": i / 10} for i in range(4)), {"value": 1}]},
            },
            "linear, karcher",
            ("a", "b"),
            "weight from 0 to 1 by layer",
        ),
    ],
)
def test_a_document_in_a_few_words(data: dict[str, Any], method: str, models: tuple[str, ...], parameters: str) -> None:
    found = summarise(parse_mapping(data))
    assert (found.method, found.models, found.parameters) == (method, models, parameters)
