"""Documents for the comparison with mergekit: its examples on tiny models, and many more in their spirit."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]


def _models(*names: str, **parameters: list[Any]) -> list[Document]:
    return [
        {"model": name, "parameters": {key: values[i] for key, values in parameters.items() if values[i] is not None}}
        for i, name in enumerate(names)
    ]


def _doc(method: str, models: list[Document] | None = None, base: str | None = None, **more: Any) -> Document:
    document: Document = {"merge_method": method, **more}
    if models is not None:
        document["models"] = models
    if base is not None:
        document["base_model"] = base
    return document


def _source(model: str, start: int, end: int, **parameters: Any) -> Document:
    return {"model": model, "layer_range": [start, end], **({"parameters": parameters} if parameters else {})}


_ATTENTION = [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}]
_T = [*_ATTENTION, {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]}, {"value": 0.5}]

EXAMPLES: dict[str, Document] = {
    "example_linear": _doc("linear", _models("a", "b", "c", weight=[1.0, 0.3, 0.5])),
    "example_bio_merge": _doc(
        "ties",
        _models("a", "b", density=[0.5, 0.5], weight=[0.5, 0.5]),
        "base",
        parameters={"normalize": False, "int8_mask": True},
    ),
    "example_gradient_slerp": _doc(
        "slerp",
        base="a",
        slices=[{"sources": [_source("a", 0, 3), _source("b", 0, 3)]}],
        parameters={"t": _T},
    ),
    "example_ties": _doc(
        "ties",
        _models(
            "a",
            "b",
            "c",
            density=[[1, 0.7, 0.1], 0.5, 0.33],
            weight=[1.0, [0, 0.3, 0.7, 1], [{"filter": "mlp", "value": 0.5}, {"value": 0}]],
        ),
        "base",
        parameters={"normalize": True, "int8_mask": True},
    ),
    "example_stacked_44": _doc(
        "passthrough", slices=[{"sources": [_source("a", 0, 2)]}, {"sources": [_source("b", 1, 3)]}]
    ),
    "example_gpt2_small": _doc("passthrough", slices=[{"sources": [_source("a", 0, 2)]}]),
    "example_arcee_fusion": _doc("arcee_fusion", _models("a", "b"), "a"),
}
"""The examples of mergekit's repository that its release 0.1.5 can run, with their models replaced by tiny ones."""

_PAIR = _models("a", "b", weight=[0.7, 0.4])
_TRIO = _models("a", "b", "c", weight=[0.5, 0.3, 0.4])
_SPARSE = _models("a", "b", "c", weight=[0.5, 0.3, 0.4], density=[0.6, 0.5, 0.8])
_DENSE = _models("a", "b", "c", weight=[0.5, 0.3, 0.4], density=[1.0, 1.0, 1.0])

OWN: dict[str, Document] = {
    "linear_not_normalized": _doc("linear", _PAIR, parameters={"normalize": False}),
    "linear_negative_weight": _doc("linear", _models("a", "b", weight=[1.5, -0.5])),
    "linear_gradient": _doc("linear", _models("a", "b", weight=[[0.1, 0.9], [0.8, 0.2, 0.4]])),
    "linear_filter": _doc("linear", _models("a", "b", weight=[[{"filter": "mlp", "value": 1}, {"value": 0.5}], 0.5])),
    "linear_weight_for_all": _doc("linear", _models("a", "b"), parameters={"weight": 0.5}),
    "linear_one_model": _doc("linear", _models("a", weight=[1.0])),
    "linear_base_joins": _doc("linear", _models("a", "b"), "base", parameters={"weight": 1.0}),
    "linear_base_listed": _doc("linear", _models("base", "a", weight=[0.2, 0.8]), "base"),
    "linear_slices": _doc(
        "linear",
        slices=[
            {"sources": [_source("a", 0, 1, weight=1.0), _source("b", 1, 2, weight=0.5)]},
            {"sources": [_source("b", 0, 3, weight=[0, 1]), _source("c", 0, 3, weight=0.5)]},
        ],
    ),
    "linear_slice_parameters": _doc(
        "linear",
        slices=[
            {"sources": [_source("a", 0, 2), _source("b", 0, 2)], "parameters": {"weight": 2.0}},
            {"sources": [_source("a", 2, 3, weight=0.1), _source("b", 2, 3)]},
        ],
        parameters={"weight": 0.6},
    ),
    "linear_modules": _doc("linear", modules={"default": {"models": _PAIR}}),
    "linear_module_slices": _doc(
        "linear",
        modules={
            "default": {
                "slices": [{"sources": [_source("a", 1, 3), _source("c", 0, 2)]}],
                "parameters": {"weight": [{"filter": "attn", "value": 0.3}, {"value": 0.9}]},
            }
        },
    ),
    "slerp_scalar": _doc("slerp", _models("a", "b"), "a", parameters={"t": 0.3}),
    "slerp_from_second": _doc("slerp", _models("a", "b"), "b", parameters={"t": 0.2}),
    "slerp_base_not_listed": _doc("slerp", _models("b"), "a", parameters={"t": 0.25}),
    "slerp_ends": _doc("slerp", _models("a", "b"), "a", parameters={"t": [0, 1]}),
    "slerp_filters": _doc("slerp", _models("a", "b"), "a", parameters={"t": _T}),
    "slerp_slices": _doc(
        "slerp",
        base="a",
        slices=[
            {"sources": [_source("a", 0, 2), _source("b", 1, 3)]},
            {"sources": [_source("a", 1, 2), _source("b", 2, 3)]},
        ],
        parameters={"t": [{"filter": "norm", "value": 0.1}, {"value": [0.2, 0.9]}]},
    ),
    "task_arithmetic": _doc("task_arithmetic", _TRIO, "base"),
    "task_arithmetic_lambda": _doc("task_arithmetic", _TRIO, "base", parameters={"lambda": 0.4}),
    "task_arithmetic_normalized": _doc("task_arithmetic", _TRIO, "base", parameters={"normalize": True}),
    "task_arithmetic_negative": _doc("task_arithmetic", _models("a", "b", weight=[1.0, -0.5]), "base"),
    "task_arithmetic_base_listed": _doc("task_arithmetic", [{"model": "base"}, *_TRIO], "base"),
    "task_arithmetic_gradient": _doc("task_arithmetic", _models("a", "b", weight=[[0, 1], [1, 0]]), "base"),
    "task_arithmetic_slices": _doc(
        "task_arithmetic",
        base="base",
        slices=[{"sources": [_source("base", 0, 2), _source("a", 0, 2, weight=0.5), _source("b", 1, 3, weight=0.7)]}],
    ),
    "ties_half": _doc("ties", _SPARSE, "base"),
    "ties_not_normalized": _doc("ties", _SPARSE, "base", parameters={"normalize": False}),
    "ties_lambda": _doc("ties", _SPARSE, "base", parameters={"lambda": 1.7}),
    "ties_dense": _doc("ties", _DENSE, "base"),
    "ties_rescale": _doc("ties", _SPARSE, "base", parameters={"rescale": True}),
    "ties_filters": _doc(
        "ties",
        _models("a", "b", weight=[1.0, [{"filter": "mlp", "value": 0.3}, {"value": 0.9}]], density=[[0.2, 0.9], 0.4]),
        "base",
    ),
    "dare_linear_dense": _doc("dare_linear", _DENSE, "base"),
    "dare_linear_normalized": _doc("dare_linear", _DENSE, "base", parameters={"normalize": True}),
    "dare_ties_dense": _doc("dare_ties", _DENSE, "base"),
    "dare_ties_lambda": _doc("dare_ties", _DENSE, "base", parameters={"lambda": 0.5, "rescale": False}),
    "breadcrumbs": _doc(
        "breadcrumbs", _models("a", "b", weight=[0.6, 0.5], density=[0.8, 0.7], gamma=[0.05, 0.1]), "base"
    ),
    "breadcrumbs_ties": _doc(
        "breadcrumbs_ties", _models("a", "b", weight=[0.6, 0.5], density=[0.8, 0.7], gamma=[0.05, 0.1]), "base"
    ),
    "della_dense": _doc("della", _models("a", "b", weight=[0.6, 0.5], density=[1.0, 1.0], epsilon=[0.0, 0.0]), "base"),
    "della_linear_dense": _doc(
        "della_linear", _models("a", "b", weight=[0.6, 0.5], density=[1.0, 1.0], epsilon=[0.0, 0.0]), "base"
    ),
    "sce_all": _doc("sce", _models("a", "b", "c"), "base"),
    "sce_topk": _doc("sce", _models("a", "b", "c"), "base", parameters={"select_topk": 0.5}),
    "model_stock": _doc("model_stock", _models("a", "b", "c"), "base"),
    "model_stock_filter_wise": _doc("model_stock", _models("a", "b", "c"), "base", parameters={"filter_wise": True}),
    "nuslerp": _doc("nuslerp", _models("a", "b", weight=[0.6, 0.4])),
    "nuslerp_base": _doc("nuslerp", _models("a", "b", weight=[0.6, 0.4]), "base"),
    "nuslerp_rows": _doc(
        "nuslerp",
        _models("a", "b", weight=[0.6, 0.4]),
        parameters={"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ),
    "multislerp": _doc("multislerp", _TRIO),
    "multislerp_base": _doc("multislerp", _TRIO, "base"),
    "karcher": _doc("karcher", _models("a", "b", "c")),
    "karcher_iterations": _doc("karcher", _models("a", "b"), parameters={"max_iter": 3, "tol": 1e-7}),
    "nearswap": _doc("nearswap", _models("a", "b"), "a", parameters={"t": 0.01}),
    "ram": _doc("ram", _models("a", "b"), "base"),
    "ramplus_tl": _doc("ramplus_tl", _models("a", "b"), "base", parameters={"r": 0.1, "alpha": 0.2}),
    "passthrough": _doc("passthrough", _models("a")),
    "passthrough_scale": _doc(
        "passthrough", _models("a", scale=[[{"filter": "o_proj", "value": 0.5}, {"value": 1.0}]])
    ),
    "passthrough_frankenmerge": _doc(
        "passthrough",
        slices=[
            {"sources": [_source("a", 0, 2)]},
            {"sources": [_source("b", 1, 2, scale=[{"filter": "down_proj", "value": 0.0}, {"value": 1.0}])]},
            {"sources": [_source("a", 1, 3)]},
        ],
    ),
    "tokenizer_base": _doc("linear", _models("a", "more", weight=[0.5, 0.5]), "a", tokenizer_source="base"),
    "tokenizer_union": _doc("linear", _models("a", "more", weight=[0.5, 0.5]), "a", tokenizer_source="union"),
    "tokenizer_union_three": _doc(
        "task_arithmetic", _models("more", "other", weight=[0.6, 0.3]), "a", tokenizer={"source": "union"}
    ),
    "tokenizer_of_a_model": _doc("linear", _models("a", "more", weight=[0.4, 0.6]), tokenizer={"source": "more"}),
    "tokenizer_padded": _doc(
        "linear", _models("a", "more", weight=[0.5, 0.5]), "a", tokenizer={"source": "union", "pad_to_multiple_of": 8}
    ),
    "tokenizer_tokens": _doc(
        "linear",
        _models("a", "more", weight=[0.5, 0.5]),
        "a",
        tokenizer={
            "source": "union",
            "tokens": {
                "elk": {"source": "more", "force": True},
                "cat": {"source": {"kind": "model_token", "model": "more", "token": "dog"}, "force": True},
                "new": {"source": {"kind": "zero"}},
                "bee": {"source": {"kind": "model_token", "model": "a", "token_id": 4}},
            },
        },
    ),
    "qwen2_tied": _doc("linear", _models("q", "r", weight=[0.5, 0.5])),
    "qwen2_tied_ties": _doc("ties", _models("r", weight=[0.8], density=[0.5]), "q"),
    "mixtral": _doc("linear", _models("x", "y", weight=[0.5, 0.5])),
    "mixtral_task_arithmetic": _doc("task_arithmetic", _models("y", weight=[0.5]), "x"),
    "mixtral_slices": _doc(
        "passthrough", slices=[{"sources": [_source("x", 0, 1)]}, {"sources": [_source("y", 0, 2)]}]
    ),
    "lora": _doc("linear", [{"model": "a+adapter", "parameters": {"weight": 0.5}}, *_models("b", weight=[0.5])]),
}
"""More documents: every method of mergekit, and every way in which its documents name models and parameters."""
