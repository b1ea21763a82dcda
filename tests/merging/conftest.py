from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mango.checkpoints import ModelSource, sha256_file
from mango.errors import ConfigError
from mango.merging import load_document

VOCABULARY = 64
MakeModel = Callable[..., Path]


def tiny_llama(seed: int, **changes: Any) -> LlamaForCausalLM:
    """A Llama of three blocks with random weights that are not multiples of each other."""
    config = LlamaConfig(
        **{
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 32,
            "tie_word_embeddings": True,
            **changes,
        }
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def save_tokenizer(folder: Path, text: str = "the cat sat on the mat") -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<s>"], show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(folder)


def write_text(path: Path) -> Path:
    """Write text in the words of the tiny vocabulary."""
    words = ("the cat ", "sat on ", "the mat ")
    path.write_text("\n".join("".join(words[(i * i + j) % 3] for j in range(40)) for i in range(100)))
    return path


class Stopped(KeyboardInterrupt):
    """Ends a merge in its middle as Ctrl-C does."""


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def problems(tmp_path: Path, lines: str) -> list[str]:
    """What is wrong with a merge document, each with its line."""
    file = tmp_path / "merge.yaml"
    file.write_text(lines)
    with pytest.raises(ConfigError) as caught:
        load_document(file)
    return [line.removeprefix(f"{file}:") for line in str(caught.value).splitlines()]


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Calibration text in the words of the tiny vocabulary."""
    return write_text(tmp_path / "text.txt")


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    def make(
        name: str,
        seed: int = 0,
        *,
        model: PreTrainedModel | None = None,
        dtype: torch.dtype = torch.bfloat16,
        text: str = "the cat sat on the mat",
        **changes: Any,
    ) -> Path:
        folder = tmp_path / name
        (model or tiny_llama(seed, **changes)).to(dtype).save_pretrained(folder)
        save_tokenizer(folder, text)
        return folder

    return make


@pytest.fixture
def family(make_model: MakeModel) -> dict[str, ModelSource]:
    """A base and three models, by name."""
    names = ("base", "a", "b", "c")
    return {name: ModelSource(source=str(make_model(name, seed))) for seed, name in enumerate(names)}
