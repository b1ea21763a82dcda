"""Statistics of calibration text, and merges that rest on them."""

from __future__ import annotations

import pytest
import torch

from mango.errors import MergeError
from mango.merging.calibration import collect_fishers, collect_grams
from mango.merging.methods import fisher, linear, regmean
from tests.merging.conftest import VOCABULARY, tiny_llama

SHORT = [torch.randint(0, VOCABULARY, (1, 8), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def test_fisher_information_is_the_mean_of_squared_gradients() -> None:
    model = tiny_llama(0)
    model.train()
    found = collect_fishers(model, SHORT)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    wanted = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for tokens in SHORT:
        model.zero_grad()
        logits = model.eval()(input_ids=tokens).logits[:, :-1]
        chosen = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).sum()
        chosen.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            wanted[name] += parameter.grad.square() / len(SHORT)
    assert set(found) == set(wanted)
    for name, matrix in found.items():
        assert torch.allclose(matrix.float(), wanted[name], rtol=1e-3, atol=1e-7), name


def test_gram_matrices_are_of_what_the_layers_read() -> None:
    model = tiny_llama(0)
    found = collect_grams(model, SHORT)
    assert not any(module._forward_hooks for module in model.modules())
    layers = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(found) == {f"{name}.weight" for name in layers}
    first = "model.layers.0.self_attn.q_proj.weight"
    with torch.no_grad():
        rows = torch.cat([model.model.layers[0].input_layernorm(model.model.embed_tokens(t))[0] for t in SHORT])
    assert torch.allclose(found[first], rows.double().T @ rows.double(), rtol=1e-5, atol=1e-6)


def test_merging_by_regmean_keeps_what_layers_give_better_than_the_mean() -> None:
    models = [tiny_llama(seed) for seed in range(2)]
    texts = [SHORT[:1], SHORT[1:2]]
    grams = [collect_grams(model, text) for model, text in zip(models, texts, strict=True)]
    for name in grams[0]:
        weights = [model.get_parameter(name).detach() for model in models]
        own = [gram[name] for gram in grams]

        def error(merged: torch.Tensor, weights: list[torch.Tensor] = weights, own: list[torch.Tensor] = own) -> float:
            apart = [merged.double() - weight.double() for weight in weights]
            return sum(float(((a @ gram) * a).sum()) for a, gram in zip(apart, own, strict=True))

        merged = regmean(weights, grams=own, reduction=1.0)
        assert error(merged) < 0.9 * error(linear(weights, weight=[1.0, 1.0])), name


def test_merging_by_fisher_is_between_the_models() -> None:
    models = [tiny_llama(seed) for seed in range(2)]
    fishers = [collect_fishers(model, SHORT[:1]) for model in models]
    for name, parameter in models[0].named_parameters():
        pair = [parameter.detach(), models[1].get_parameter(name).detach()]
        merged = fisher(pair, fishers=[found[name] for found in fishers], weight=[1.0, 1.0])
        assert bool((merged >= torch.minimum(*pair) - 1e-6).all() & (merged <= torch.maximum(*pair) + 1e-6).all())


@pytest.mark.parametrize("collect", [collect_fishers, collect_grams])
def test_no_text_is_refused(collect: object) -> None:
    with pytest.raises(MergeError, match="there are no sequences"):
        collect(tiny_llama(0), [])  # type: ignore[operator]
