"""What is saved is what was fused, and it opens like any other model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mango.blocks import BlockStore
from mango.errors import CheckpointError, ConfigError
from mango.fusion import MolConfig, MolForCausalLM
from tests.blocks.families import VOCAB
from tests.fusion.models import LAYOUTS, ROUTERS, fuse, left_padded, tokens

ROOT = Path(__file__).parents[2]
IDS = tokens(2, 21, seed=30)
MASK = left_padded(IDS, [0, 6])


@pytest.fixture(scope="module")
def saved(store: BlockStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused")
    fuse(store, LAYOUTS["extents"], ROUTERS["top-1 window"]).save_pretrained(folder)
    words = {"type": "WordLevel", "vocab": {f"t{number}": number for number in range(VOCAB)}, "unk_token": "t3"}
    spaces = {"type": "WhitespaceSplit"}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": spaces, "model": words}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "t0", "eos_token": "t1"})
    )
    return folder


def damaged(saved: Path, target: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Copy a checkpoint and return its tensors, to be changed."""
    target.mkdir()
    (target / "config.json").write_bytes((saved / "config.json").read_bytes())
    return target, load_file(saved / "model.safetensors")


@pytest.mark.parametrize(
    ("layout", "router"),
    [*zip(LAYOUTS, ROUTERS, strict=False), ("extents", "token segment"), ("extents", "top-2 window")],
)
def test_saving_and_opening_differ_by_nothing(store: BlockStore, tmp_path: Path, layout: str, router: str) -> None:
    model = fuse(store, LAYOUTS[layout], ROUTERS[router], adapter="bottleneck")
    model.save_pretrained(tmp_path)
    opened = MolForCausalLM.from_pretrained(tmp_path)
    assert not opened.training
    states, again = model.state_dict(), opened.state_dict()
    assert states.keys() == again.keys()
    assert all(again[name].equal(tensor) and again[name].dtype == tensor.dtype for name, tensor in states.items())
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in opened.named_parameters() if parameter.requires_grad} == wanted
    with torch.no_grad():
        assert opened(IDS, attention_mask=MASK).logits.equal(model(IDS, attention_mask=MASK).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_saved_and_opened_as_it_is(store: BlockStore, tmp_path: Path, dtype: str) -> None:
    model = fuse(store, LAYOUTS["extents"], ROUTERS["top-1 window"], dtype=dtype)
    model.save_pretrained(tmp_path)
    opened = MolForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for n, p in opened.named_parameters() if ".bodies." in n} == {getattr(torch, dtype)}
    assert {p.dtype for p in opened.iter_adapters()[0].parameters()} == {torch.float32}
    assert [b for n, b in opened.named_buffers() if n.endswith("inv_freq") and b.dtype != torch.float32] == []
    for how in ("hard", "soft"):
        for each in (model, opened):
            each.set_routing(how)
        with torch.no_grad():
            wanted = model(IDS, attention_mask=MASK).logits
            assert opened(IDS, attention_mask=MASK).logits.equal(wanted)
        assert bool(wanted.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_checkpoint_opens_in_half_precision(saved: Path, dtype: torch.dtype) -> None:
    exact, half = MolForCausalLM.from_pretrained(saved), MolForCausalLM.from_pretrained(saved, dtype=dtype)
    assert half.dtype == dtype
    for model in (exact, half):
        model.set_routing("soft")
    with torch.no_grad():
        wanted, found = exact(IDS, attention_mask=MASK).logits, half(IDS, attention_mask=MASK).logits
    torch.testing.assert_close(found.float()[MASK.bool()], wanted[MASK.bool()], atol=0.1, rtol=0.1)
    assert half.generate(IDS, attention_mask=MASK, max_new_tokens=3).shape == (2, 24)


def test_no_tensor_is_saved_twice(saved: Path) -> None:
    with safe_open(saved / "model.safetensors", "pt") as file:
        names = set(file.keys())
        sizes = {name: file.get_slice(name).get_shape() for name in names}
    model = MolForCausalLM.from_pretrained(saved)
    assert names.isdisjoint(model.all_tied_weights_keys)
    # The tied head of the trunk is its embedding's own tensor, not a copy.
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head is not None
    assert head.weight is embedding.weight
    assert sum(torch.Size(shape).numel() for shape in sizes.values()) == sum(
        tensor.numel() for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys
    )


def test_a_missing_tensor_is_an_error_and_no_random_start(saved: Path, tmp_path: Path) -> None:
    folder, tensors = damaged(saved, tmp_path / "copy")
    name = "experts.1.bodies.0.base.h.0.mlp.c_fc.weight"
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"its tensors are not those .*: missing {name}; bring"):
        MolForCausalLM.from_pretrained(folder)


def test_missing_and_surplus_tensors_are_counted(saved: Path, tmp_path: Path) -> None:
    folder, tensors = damaged(saved, tmp_path / "copy")
    for name in [name for name in tensors if name.startswith("routers.")]:
        tensors[name.replace("routers", "reuters")] = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing routers\.0\..* and 9 more; surplus reuters\.0\..* and 9 more;"):
        MolForCausalLM.from_pretrained(folder)


def test_a_tensor_of_another_shape_is_an_error_even_if_told_to_ignore_it(saved: Path, tmp_path: Path) -> None:
    folder, tensors = damaged(saved, tmp_path / "copy")
    tensors["routers.0.outer.bias"] = torch.zeros(7)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"misshapen .*routers\.0\.outer\.bias"):
        MolForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_loading_info_is_given_when_asked_for(saved: Path) -> None:
    model, info = MolForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert isinstance(model, MolForCausalLM)
    assert not info["missing_keys"]


def test_the_configuration_is_plain_json(saved: Path) -> None:
    config = MolConfig.from_pretrained(saved)
    values = json.loads(config.to_json_string(use_diff=False))
    again = MolConfig.from_dict(values)
    assert again.to_dict() == config.to_dict()
    assert again.get_layout() == config.get_layout()
    assert MolConfig.from_dict(json.loads((saved / "config.json").read_text())).to_dict() == config.to_dict()
    with pytest.raises(ConfigError, match="sources has no 'other'; it has base, short, sister, stranger"):
        config.source_config("other")
    config.sources["base"]["model_type"] = "llamo"
    with pytest.raises(ConfigError, match=r"sources\.base: the installed transformers has no model type 'llamo'"):
        config.source_config("base")
    with pytest.raises(ConfigError, match="layout has no experts"):
        MolForCausalLM(MolConfig())


FRESH = """
import sys
import mango
assert "transformers" not in sys.modules
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline
folder = sys.argv[1]
config = AutoConfig.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
generate = pipeline("text-generation", model=folder, max_new_tokens=4, do_sample=False)
texts = generate(["t5 t6 t7", "t9"], batch_size=2)
print(type(config).__name__, type(model).__name__, type(generate.model).__name__, len(texts))
print([text[0]["generated_text"].startswith(start) for text, start in zip(texts, ["t5", "t9"])])
"""


def test_after_import_mango_a_fresh_process_opens_it_and_a_pipeline_runs_it(saved: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FRESH, str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=saved, check=False)
    assert done.stdout.splitlines() == ["MolConfig MolForCausalLM MolForCausalLM 2", "[True, True]"], done.stderr
