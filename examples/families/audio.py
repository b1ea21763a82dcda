"""Audio: which block of a Wav2Vec2 hears pitch best? Its blocks are read from a store, one after another.

python examples/families/audio.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_models import put_together, write_model
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from mango.architectures.trace import tracing
from mango.blocks import extract
from mango.checkpoints import ModelSource


def tones(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noisy tones of a tenth of a second, and whether each is a high one."""
    high = torch.rand(count, generator=generator) < 0.5
    pitch = torch.where(high, 0.5, 0.15) + 0.05 * torch.rand(count, generator=generator)
    phase = torch.rand(count, 1, generator=generator) * 6.3
    waves = torch.sin(pitch[:, None] * torch.arange(1600)[None] + phase)
    return waves + 0.3 * torch.randn(count, 1600, generator=generator), high.long()


def main(out: Path) -> dict[str, float]:
    """Extract, run the model with blocks from the store and fit probes; return the accuracy after each block."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=64, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
        conv_dim=(32, 32, 32), conv_kernel=(10, 3, 3), conv_stride=(5, 4, 2), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    wav2vec2 = Wav2Vec2ForCTC(config).eval()
    folder = write_model(wav2vec2, out / "wav2vec2")
    store = extract({"wav2vec2": ModelSource(source=str(folder))}, out / "blocks", "reference")
    model = put_together(store, "wav2vec2")
    waves, high = tones(192, torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert model(waves[:4]).logits.equal(wav2vec2(waves[:4]).logits)
        with tracing(model) as trace:
            model(waves)
    parts = store.model("wav2vec2").architecture
    accuracy = {}
    for index in range(parts.num_blocks):
        call = next(call for call in trace.calls if call.path == f"{parts.blocks_path}.{index}")
        states = call.output[0] if isinstance(call.output, tuple) else call.output
        accuracy[f"block {index}"] = probe(states.mean(1), high)
    print({name: round(value, 3) for name, value in accuracy.items()})
    return accuracy


def probe(features: Tensor, labels: Tensor) -> float:
    """Return how many of the second half a ridge regression on the first half gets right."""
    half = len(features) // 2
    features = torch.cat([features - features.mean(0), torch.ones(len(features), 1)], 1).double()
    seen, wanted = features[:half], labels[:half].double() * 2 - 1
    weights = torch.linalg.solve(seen.T @ seen + 1e-2 * torch.eye(seen.shape[1]), seen.T @ wanted)
    return float(((features[half:] @ weights > 0).long() == labels[half:]).double().mean())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
