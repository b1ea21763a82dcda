from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from mango.checkpoints import Checkpoint, ModelSource, sha256_file, verify
from mango.config import Frozen
from mango.errors import MergeError
from mango.merging import MERGERS, load_document, merge, merge_method, plan
from mango.merging.combining import TensorMaker
from tests.merging.conftest import VOCABULARY, save_tokenizer
from tests.merging.documents import DOCUMENTS, Family, MakeModel, document, weights
from tests.reference import merging as reference


def exact(method: str, base: torch.Tensor, models: Sequence[torch.Tensor]) -> torch.Tensor:
    start, arrays = base.double().numpy(), [model.double().numpy() for model in models]
    result = {
        "linear": lambda: reference.linear(arrays, [1.0, 2.0, 0.5][: len(arrays)]),
        "task_arithmetic": lambda: reference.task_arithmetic(start, arrays, [1.0] * len(arrays), 0.4),
        "ties": lambda: reference.ties(start, arrays, [1.0] * len(arrays), [0.3] * len(arrays), 1.0),
        "slerp": lambda: reference.slerp(arrays[0], arrays[1], 0.3),
    }[method]()
    return torch.from_numpy(result).to(base.dtype)


@pytest.mark.parametrize("method", sorted(DOCUMENTS))
def test_a_merged_model_is_what_the_paper_says_and_opens(tmp_path: Path, family: Family, method: str) -> None:
    out = tmp_path / "merged"
    steps: list[tuple[int, int]] = []
    report = merge(DOCUMENTS[method], out, family, on_tensor=lambda done, total: steps.append((done, total)))
    verify(out)
    merged, parts = weights(out), {name: weights(source) for name, source in family.items()}
    assert sorted(merged) == sorted(parts["a"])
    used = [entry["model"] for entry in DOCUMENTS[method]["models"]]
    wrong = 0
    for name, tensor in merged.items():
        wanted = exact(method, parts["base"][name], [parts[model][name] for model in used])
        assert tensor.dtype == torch.bfloat16
        assert ((tensor.double() - wanted.double()).abs() <= wanted.abs().double() * 2**-7 + 1e-9).all(), name
        wrong += int((tensor != wanted).sum())
    assert wrong <= 0.006 * report.num_parameters
    assert report.num_tensors == len(merged) == steps[-1][0] == steps[-1][1]
    assert report.num_parameters == sum(tensor.numel() for tensor in merged.values())
    assert json.loads(json.dumps(report.to_dict()))["method"] == method
    model, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.dtype == torch.bfloat16
    ids = AutoTokenizer.from_pretrained(out)("the cat", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=2).shape[1] == ids["input_ids"].shape[1] + 2


@pytest.mark.parametrize("method", sorted(DOCUMENTS))
def test_the_resolved_document_makes_the_same_bytes(tmp_path: Path, family: Family, method: str) -> None:
    merge(DOCUMENTS[method], tmp_path / "one", family)
    again = load_document(tmp_path / "one" / "mango_merge.yaml")
    merge(again, tmp_path / "two")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert sha256_file(tmp_path / "one" / name) == sha256_file(tmp_path / "two" / name)
    assert set(again.parameters) >= {"linear": {"normalize"}, "slerp": {"t"}}.get(method, {"lambda", "normalize"})


def test_the_hash_seed_does_not_matter(tmp_path: Path, family: Family) -> None:
    merge(DOCUMENTS["ties"], tmp_path / "here", family)
    script = (
        "import json, sys\nfrom mango.checkpoints import ModelSource\nfrom mango.merging import merge\n"
        "d, out, m = json.loads(sys.argv[1])\nmerge(d, out, {k: ModelSource(source=v) for k, v in m.items()})\n"
    )
    sources = {name: source.source for name, source in family.items()}
    argument = json.dumps([DOCUMENTS["ties"], str(tmp_path / "there"), sources])
    subprocess.run(
        [sys.executable, "-c", script, argument], check=True, env={**os.environ, "PYTHONHASHSEED": "77"}, timeout=120
    )
    here, there = ((tmp_path / place / "MANIFEST.json").read_text() for place in ("here", "there"))
    assert here == there


def test_gradients_and_filters_reach_their_tensors(tmp_path: Path, family: Family) -> None:
    t = [{"filter": "mlp", "value": [0, 0.5, 1]}, {"filter": "embed", "value": 1}, {"value": 0}]
    merge(document("slerp", "a", "b", t=t), tmp_path / "out", family)
    merged, a, b = weights(tmp_path / "out"), weights(family["a"]), weights(family["b"])
    for name, tensor in merged.items():
        if "embed" in name or ("mlp" in name and ".2." in name):
            assert torch.equal(tensor, b[name]), name
        elif "mlp" not in name or ".0." in name:
            assert torch.equal(tensor, a[name]), name
        else:
            assert not torch.equal(tensor, a[name])
            assert not torch.equal(tensor, b[name])


def test_the_nearest_level_wins(tmp_path: Path, family: Family) -> None:
    data = document("linear", "a", "b", weight=[{"filter": "mlp", "value": 0}, {"value": 3}], normalize=False)
    data["models"][0]["parameters"] = {"weight": [{"filter": "norm", "value": 0}, {"filter": "mlp", "value": 1}]}
    built = plan(data, family)
    found = {output.spec.name: output.arguments["weight"] for output in built.tensors if output.arguments}
    assert found["model.layers.0.mlp.up_proj.weight"] == (1.0, 0.0)
    assert found["model.norm.weight"] == (0.0, 3.0)
    assert found["model.embed_tokens.weight"] == (3.0, 3.0)


def test_gradients_are_read_at_depth_0_outside_of_the_blocks(family: Family) -> None:
    tensors = plan(document("slerp", "a", "b", t=[0.25, 1]), family).tensors
    found = {output.spec.name: output.arguments["t"] for output in tensors if output.arguments}
    assert found["model.embed_tokens.weight"] == found["model.norm.weight"] == 0.25
    assert [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [0.25, 0.625, 1.0]


def test_slices_stack_blocks_of_several_models(tmp_path: Path, family: Family) -> None:
    data = {
        "merge_method": "linear",
        "slices": [
            {"sources": [{"model": "a", "layer_range": [0, 2]}]},
            {
                "sources": [{"model": "b", "layer_range": [0, 2]}, {"model": "c", "layer_range": [1, 3]}],
                "parameters": {"weight": [1, 3]},
            },
        ],
        "parameters": {"weight": 1},
    }
    merge(data, tmp_path / "out", family)
    merged, a, b, c = weights(tmp_path / "out"), *(weights(family[name]) for name in "abc")
    assert torch.equal(merged["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    name = "model.layers.{}.mlp.up_proj.weight".format
    assert torch.equal(merged[name(1)], a[name(1)])
    mean = ((b[name(1)].double() + c[name(2)].double()) / 2).bfloat16()
    assert torch.equal(merged[name(3)], mean)
    norm = ((b["model.norm.weight"].double() + c["model.norm.weight"].double()) / 2).bfloat16()
    assert torch.equal(merged["model.norm.weight"], norm)
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    assert model.config.num_hidden_layers == 4
    assert model(torch.tensor([[1, 2]])).logits.isfinite().all()


@pytest.mark.parametrize(("word", "dtype"), [("float32", torch.float32), ("fp16", torch.float16)])
def test_the_type_asked_for_is_the_type_written(tmp_path: Path, family: Family, word: str, dtype: torch.dtype) -> None:
    data = {**DOCUMENTS["slerp"], "dtype": "bfloat16", "out_dtype": word}
    merge(data, tmp_path / "out", family)
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {dtype}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == dtype


def test_shards_are_written_and_read(tmp_path: Path, family: Family) -> None:
    merge(DOCUMENTS["linear"], tmp_path / "one", family)
    merge(DOCUMENTS["linear"], tmp_path / "many", family, max_shard_bytes=3000)
    one, many = Checkpoint.open(tmp_path / "one"), Checkpoint.open(tmp_path / "many")
    assert len(many.files()) > 3
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in one)


def test_threads_of_an_accelerators_own_change_no_byte(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(DOCUMENTS["ties"], tmp_path / "one", family, max_shard_bytes=3000, threads=3)
    seen = []
    start, load = TensorMaker.__init__, TensorMaker.calls

    def accelerated(self: TensorMaker, devices: Sequence[torch.device]) -> None:
        start(self, devices)
        self._accelerated = True

    def calls(self: TensorMaker, *given: Any) -> Any:
        seen.append(threading.current_thread().name)
        return load(self, *given)

    monkeypatch.setattr(TensorMaker, "__init__", accelerated)
    monkeypatch.setattr(TensorMaker, "calls", calls)
    merge(DOCUMENTS["ties"], tmp_path / "two", family, max_shard_bytes=3000, threads=3)
    assert {name.rpartition("_")[0] for name in seen} == {"mango-load"}
    one, two = ({f.name: sha256_file(f) for f in (tmp_path / n).glob("*.safetensors")} for n in ("one", "two"))
    assert len(one) > 3
    assert one == two


def test_an_accelerators_files_are_written_side_by_side() -> None:
    beside, cpu = TensorMaker([torch.device("cuda", 0)]), TensorMaker([torch.device("cpu")])
    assert (beside.num_files(16), cpu.num_files(16)) == (16, 8)
    assert cpu.window() is None
    with cpu.loaders(16) as none, beside.loaders(2) as some:
        assert none is None
        assert some is not None
        assert some.submit(lambda: 1).result() == 1


class TestHeads:
    def test_untied_models_keep_a_merged_head(self, tmp_path: Path, make_model: MakeModel) -> None:
        sources = {n: ModelSource(source=str(make_model(n, i, tie_word_embeddings=False))) for i, n in enumerate("ab")}
        report = merge(document("linear", "a", "b", weight=1), tmp_path / "out", sources)
        assert not report.tied
        a, b = (weights(sources[name])["lm_head.weight"].double() for name in "ab")
        assert torch.equal(weights(tmp_path / "out")["lm_head.weight"], ((a + b) / 2).bfloat16())

    @pytest.mark.parametrize("order", ["ab", "ba"])
    def test_tied_and_untied_models_make_an_untied_one(self, tmp_path: Path, make_model: MakeModel, order: str) -> None:
        sources = {
            "a": ModelSource(source=str(make_model("a", 1, tie_word_embeddings=True))),
            "b": ModelSource(source=str(make_model("b", 2, tie_word_embeddings=False))),
        }
        report = merge(document("linear", *order, weight=1), tmp_path / "out", sources)
        assert not report.tied
        assert any("a head of its own" in note for note in report.notes)
        embedding, head = weights(sources["a"])["model.embed_tokens.weight"], weights(sources["b"])["lm_head.weight"]
        merged = weights(tmp_path / "out")
        assert torch.equal(merged["lm_head.weight"], ((embedding.double() + head.double()) / 2).bfloat16())
        model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(loading.values())
        assert torch.equal(model.lm_head.weight, merged["lm_head.weight"])

    def test_a_tied_model_that_stores_its_head_twice(self, tmp_path: Path, family: Family) -> None:
        file = Path(family["a"].source) / "model.safetensors"
        tensors = load_file(file)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, file, {"format": "pt"})
        merge(DOCUMENTS["linear"], tmp_path / "out", family)
        assert "lm_head.weight" not in weights(tmp_path / "out")
        tensors["lm_head.weight"] += 1
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(MergeError, match=r"'a': config\.json ties head and embedding, but lm_head\.weight differs"):
            merge(DOCUMENTS["linear"], tmp_path / "out", family)


def test_gpt2_checkpoints_with_and_without_prefix_and_masks(tmp_path: Path) -> None:
    sources = {}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        config = GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=VOCABULARY, n_positions=32, bos_token_id=0, eos_token_id=0
        )
        model = GPT2LMHeadModel(config)
        model.save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name)
        sources[name] = ModelSource(source=str(tmp_path / name))
    file = tmp_path / "b" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)  # a mask, as older files have it
    save_file(tensors, file, {"format": "pt"})
    report = merge(document("linear", "a", "b", weight=1), tmp_path / "out", sources)
    assert report.notes == ("model 'b': 1 tensors that the architecture does not read are left out",)
    merged, a = weights(tmp_path / "out"), weights(sources["a"])
    assert sorted(merged) == sorted(a)
    name = "h.1.mlp.c_fc.weight"
    mean = (a[f"transformer.{name}"].double() + tensors[name].double()) / 2
    assert torch.equal(merged[f"transformer.{name}"], mean.float())


def test_configurations_that_differ_are_noted(family: Family) -> None:
    path = Path(family["b"].source) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rms_norm_eps": 0.5}))
    notes = plan(DOCUMENTS["linear"], family).notes
    assert notes == ("config.json of model 'b' differs from that of 'a' in rms_norm_eps; the latter is kept",)


def test_integer_tensors_must_be_equal(tmp_path: Path, family: Family) -> None:
    for name in "abc":
        file = Path(family[name].source) / "model.safetensors"
        save_file({**load_file(file), "model.counts": torch.tensor([7])}, file, {"format": "pt"})
    merge(DOCUMENTS["linear"], tmp_path / "out", family)
    assert weights(tmp_path / "out")["model.counts"].tolist() == [7]
    save_file({**load_file(file), "model.counts": torch.tensor([8])}, file, {"format": "pt"})
    with pytest.raises(MergeError, match=r"model\.counts: holds integers that differ"):
        merge(DOCUMENTS["linear"], tmp_path / "out", family)


def test_a_method_of_another_package_is_like_a_built_in_one(tmp_path: Path, family: Family) -> None:
    class FirstRowParams(Frozen):
        scale: float = 1.0

    @merge_method("first_row", FirstRowParams, base="none", num_models=2)
    def first_row(tensors: Sequence[torch.Tensor], *, scale: float, dtype: torch.dtype) -> torch.Tensor:
        result = tensors[0].double().clone()
        result[0] = tensors[1][0] * scale  # not elementwise: it needs the tensor's shape
        return result.to(dtype)

    try:
        merge(document("first_row", "a", "b", scale=2.0) | {"base_model": "a"}, tmp_path / "out", family)
    finally:
        MERGERS._entries.pop("first_row")
    merged, a, b = weights(tmp_path / "out"), weights(family["a"]), weights(family["b"])
    name = "model.embed_tokens.weight"
    assert torch.equal(merged[name][0], b[name][0] * 2)
    assert torch.equal(merged[name][1:], a[name][1:])


def test_a_merged_model_can_be_merged_onto_itself(tmp_path: Path, family: Family) -> None:
    merge(DOCUMENTS["linear"], tmp_path / "out", family)
    before = weights(tmp_path / "out")
    family["a"] = ModelSource(source=str(tmp_path / "out"))
    merge(document("slerp", "a", "b", t=0.0), tmp_path / "out", family)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "out").items())
