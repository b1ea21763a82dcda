from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from mango.architectures import block_list, capture_block_calls, describe
from mango.errors import ArchitectureError

CONFIG = LlamaConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=64
)  # fmt: skip
TOKENS = torch.arange(10).reshape(2, 5)
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG).eval()


def test_calls_chain_from_the_embedding_to_the_norm(model: PreTrainedModel) -> None:
    calls = capture_block_calls(model, TOKENS, MASK)
    assert len(calls) == 3
    assert torch.equal(calls[0].args[0], model.model.embed_tokens(TOKENS))
    assert torch.equal(calls[1].args[0], calls[0].output)
    assert torch.equal(calls[2].args[0], calls[1].output)
    with torch.no_grad():
        logits = model(input_ids=TOKENS, attention_mask=MASK).logits
        assert torch.equal(model.lm_head(model.model.norm(calls[2].output)), logits)


def test_arguments_carry_mask_and_positions_and_no_cache(model: PreTrainedModel) -> None:
    call = capture_block_calls(model, TOKENS, MASK, torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]))[0]
    assert call.kwargs["attention_mask"].shape == (2, 1, 5, 5)
    assert call.kwargs["position_ids"][0].tolist() == [0, 0, 0, 1, 2]
    assert call.kwargs["past_key_values"] is None
    assert call.output.requires_grad is False


def test_one_copy_serves_all_blocks_that_share_a_tensor(model: PreTrainedModel) -> None:
    first, second, _ = capture_block_calls(model, TOKENS, MASK)
    assert first.kwargs["attention_mask"] is second.kwargs["attention_mask"]
    assert first.args[0] is not second.args[0]


def test_captured_tensors_stay_as_they_were_given(model: PreTrainedModel) -> None:
    class InPlace(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor, **kwargs: object) -> torch.Tensor:
            return hidden.add_(1.0)

    plain = capture_block_calls(model, TOKENS)[0].args[0]
    for index, block in enumerate(model.model.layers):
        model.model.layers[index] = InPlace(block)
    calls = capture_block_calls(model, TOKENS)
    for index, call in enumerate(calls):
        torch.testing.assert_close(call.args[0], plain + index)
        torch.testing.assert_close(call.output, plain + index + 1)


def test_no_hook_stays_behind_even_after_a_failure(model: PreTrainedModel) -> None:
    capture_block_calls(model, TOKENS)
    with pytest.raises(IndexError):
        capture_block_calls(model, torch.tensor([[1000]]))
    assert all(not block._forward_hooks and not block._forward_pre_hooks for block in model.model.layers)


def test_block_that_does_not_run_is_reported(model: PreTrainedModel) -> None:
    model.config.num_hidden_layers = 2  # the forward pass runs as many as this says
    with pytest.raises(ArchitectureError, match="LlamaForCausalLM: 2 of 3 blocks ran"):
        capture_block_calls(model, TOKENS)


def test_block_list_is_the_models_own(model: PreTrainedModel) -> None:
    assert block_list(model) is model.model.layers
    with pytest.raises(ArchitectureError, match=r"LlamaModel has no model\.layers: wanted a LlamaForCausalLM"):
        block_list(model.model, describe(CONFIG))
