from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from mango.checkpoints import Checkpoint, ModelSource, replace_folder, sha256_file, verify
from mango.config import Frozen
from mango.errors import CheckpointError, IntegrityError, MergeError
from mango.merging import MERGERS, load_document, merge, merge_method, plan
from tests.merging.conftest import VOCABULARY, save_tokenizer, tiny_llama
from tests.reference import merging as reference

Family = dict[str, ModelSource]
MakeModel = Callable[..., Path]


def document(method: str, *names: str, **parameters: Any) -> dict[str, Any]:
    data = {"merge_method": method, "models": [{"model": name} for name in names], "parameters": parameters}
    if method != "linear":
        data["base_model"] = names[0] if method == "slerp" else "base"
    return data


def weights(source: ModelSource | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(source.source if isinstance(source, ModelSource) else source) / "model.safetensors")


def exact(method: str, base: torch.Tensor, models: Sequence[torch.Tensor]) -> torch.Tensor:
    start, arrays = base.double().numpy(), [model.double().numpy() for model in models]
    result = {
        "linear": lambda: reference.linear(arrays, [1.0, 2.0, 0.5][: len(arrays)]),
        "task_arithmetic": lambda: reference.task_arithmetic(start, arrays, [1.0] * len(arrays), 0.4),
        "ties": lambda: reference.ties(start, arrays, [1.0] * len(arrays), [0.3] * len(arrays), 1.0),
        "slerp": lambda: reference.slerp(arrays[0], arrays[1], 0.3),
    }[method]()
    return torch.from_numpy(result).to(base.dtype)


DOCUMENTS: dict[str, dict[str, Any]] = {
    "linear": {
        "merge_method": "linear",
        "models": [{"model": n, "parameters": {"weight": w}} for n, w in (("a", 1.0), ("b", 2.0), ("c", 0.5))],
    },
    "task_arithmetic": document("task_arithmetic", "a", "b", "c", weight=1.0, **{"lambda": 0.4}),
    "ties": document("ties", "a", "b", "c", weight=1.0, density=0.3),
    "slerp": document("slerp", "a", "b", t=0.3),
}


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


class TestRefusals:
    """Each is one clear error, before a weight is read, and leaves the previous output as it was."""

    @pytest.fixture(autouse=True)
    def _old_output_stays(self, tmp_path: Path) -> Iterator[None]:
        with replace_folder(tmp_path / "out") as new:
            (new / "config.json").write_text("old")
        yield
        verify(tmp_path / "out")
        assert (tmp_path / "out" / "config.json").read_text() == "old"
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]

    @pytest.fixture
    def no_reading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Checkpoint, name: str) -> torch.Tensor:
            raise AssertionError(f"{name} was read")

        monkeypatch.setattr(Checkpoint, "tensor", refuse)

    def refused(self, tmp_path: Path, family: Family, message: str, data: dict[str, Any] | None = None) -> str:
        with pytest.raises(MergeError, match=message) as caught:
            merge(data or DOCUMENTS["linear"], tmp_path / "out", family)
        return str(caught.value)

    @pytest.mark.usefixtures("no_reading")
    def test_missing_models(self, tmp_path: Path, family: Family) -> None:
        del family["b"]
        family["c"] = ModelSource(source=str(tmp_path / "nothing"))
        text = self.refused(tmp_path, family, "model 'b': b: there is no such folder")
        assert "model 'c': " in text
        assert "no such model folder or file" in text

    @pytest.mark.usefixtures("no_reading")
    def test_adapters(self, tmp_path: Path, family: Family) -> None:
        (tmp_path / "lora").mkdir()
        named = f"b+{tmp_path / 'lora'}"
        self.refused(
            tmp_path, family, "holds no adapter_config.json, so it is no", document("linear", "a", named, weight=1)
        )
        self.refused(tmp_path, family, "more than one adapter", document("linear", "a", "b+c+d", weight=1))

    @pytest.mark.usefixtures("no_reading")
    def test_another_architecture(self, tmp_path: Path, family: Family, make_model: MakeModel) -> None:
        config = GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=VOCABULARY, n_positions=32)
        family["b"] = ModelSource(source=str(make_model("gpt2", model=GPT2LMHeadModel(config))))
        text = self.refused(tmp_path, family, "'b' is of another architecture than 'a'")
        assert "model_type 'gpt2' against 'llama'" in text
        assert len(text.splitlines()) == 1

    @pytest.mark.usefixtures("no_reading")
    def test_another_width(self, tmp_path: Path, family: Family, make_model: MakeModel) -> None:
        family["b"] = ModelSource(source=str(make_model("wide", hidden_size=32)))
        self.refused(tmp_path, family, r"'b' is of another architecture .*hidden_size 32 against 16")

    @pytest.mark.usefixtures("no_reading")
    def test_another_vocabulary(self, tmp_path: Path, family: Family, make_model: MakeModel) -> None:
        family["b"] = ModelSource(source=str(make_model("other", text="völlig anderer Text")))
        self.refused(
            tmp_path, family, r"tokenizer of model 'b' is not that of 'a' .*: the same id stands for different"
        )

    def edit(self, source: ModelSource, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
        file = Path(source.source) / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})

    @pytest.mark.usefixtures("no_reading")
    def test_missing_and_surplus_tensors(self, tmp_path: Path, family: Family) -> None:
        self.edit(family["b"], lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
        self.refused(
            tmp_path, family, r"layers\.1\.mlp\.up_proj\.weight: model 'b' has no tensor mlp\.up_proj\.weight of"
        )
        self.edit(family["c"], lambda tensors: tensors.update({"value_head.weight": torch.ones(1)}))
        self.refused(tmp_path, family, r"model 'c' has value_head\.weight that 'a' does not have")

    @pytest.mark.usefixtures("no_reading")
    def test_a_missing_block(self, tmp_path: Path, family: Family) -> None:
        def remove(tensors: dict[str, torch.Tensor]) -> None:
            for name in [name for name in tensors if ".layers.2." in name]:
                del tensors[name]

        self.edit(family["b"], remove)
        self.refused(tmp_path, family, r"model 'b': .*: config\.json says 3 blocks, the weights have 2")

    @pytest.mark.usefixtures("no_reading")
    def test_shapes_that_differ(self, tmp_path: Path, family: Family) -> None:
        self.edit(family["b"], lambda tensors: tensors.update({"model.norm.weight": torch.ones(15)}))
        self.refused(tmp_path, family, r"model\.norm\.weight: \[15\] in model 'b' and \[16\] in 'a'")

    @pytest.mark.usefixtures("no_reading")
    def test_types_that_cannot_be_merged(self, tmp_path: Path, family: Family) -> None:
        self.edit(family["b"], lambda tensors: tensors.update({"model.norm.weight": torch.ones(16, dtype=torch.int8)}))
        self.refused(tmp_path, family, r"model\.norm\.weight: element type I8 cannot be merged")

    @pytest.mark.usefixtures("no_reading")
    def test_quantised_weights(self, tmp_path: Path, family: Family) -> None:
        path = Path(family["b"].source) / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "x"}}))
        self.refused(tmp_path, family, r"model 'b': .*: its weights are quantised \(x\), and there is no way")

    @pytest.mark.usefixtures("no_reading")
    def test_a_range_beyond_the_model(self, tmp_path: Path, family: Family) -> None:
        data = {
            "merge_method": "linear",
            "slices": [{"sources": [{"model": "a", "layer_range": [1, 5]}]}],
            "parameters": {"weight": 1},
        }
        self.refused(tmp_path, family, r"layer_range: \[1, 5\] goes beyond the 3 blocks of model 'a'", data)

    @pytest.mark.usefixtures("no_reading")
    def test_parameters_that_are_missing_or_cancel(self, tmp_path: Path, family: Family) -> None:
        self.refused(tmp_path, family, "no parameter 'weight' of model 'a'", document("linear", "a", "b"))
        data = document("linear", "a", "b", weight={"filter": "mlp", "value": 1})
        self.refused(tmp_path, family, r"model\.embed_tokens\.weight: no parameter 'weight'", data)
        data = document("linear", "a", "b", weight=1)
        data["models"][0]["parameters"] = {"weight": -1}
        self.refused(tmp_path, family, "sum to zero", data)

    def test_a_truncated_shard(self, tmp_path: Path, family: Family) -> None:
        file = Path(family["b"].source) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        self.refused(tmp_path, family, r"model 'b': .*model\.safetensors: truncated")

    def test_one_flipped_bit(self, tmp_path: Path, family: Family) -> None:
        source = tmp_path / "sealed"
        with replace_folder(source) as new:
            for path in Path(family["b"].source).iterdir():
                (new / path.name).write_bytes(path.read_bytes())
        content = bytearray((source / "model.safetensors").read_bytes())
        content[-5] ^= 1
        (source / "model.safetensors").write_bytes(content)
        family["b"] = ModelSource(source=str(source))
        with pytest.raises(IntegrityError, match=r"model\.safetensors: BLAKE3 is"):
            merge(DOCUMENTS["linear"], tmp_path / "out", family)

    @pytest.mark.parametrize("method", sorted(DOCUMENTS))
    def test_nan(self, tmp_path: Path, family: Family, method: str) -> None:
        def spoil(tensors: dict[str, torch.Tensor]) -> None:
            tensors["model.norm.weight"][3] = float("nan")

        self.edit(family["b"], spoil)
        self.refused(tmp_path, family, r"model\.norm\.weight: .*not finite in BF16", DOCUMENTS[method])

    def test_overflow(self, tmp_path: Path, family: Family) -> None:
        self.edit(family["b"], lambda tensors: tensors["model.norm.weight"].fill_(1e9))
        data = {**DOCUMENTS["linear"], "out_dtype": "float16"}
        self.refused(tmp_path, family, r"not finite in F16: .*out_dtype: float32", data)

    def test_a_shard_outside_of_its_folder(self, tmp_path: Path, family: Family) -> None:
        folder = Path(family["b"].source)
        (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
        index = {"weight_map": dict.fromkeys(load_file(tmp_path / "outside.safetensors"), "../outside.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        self.refused(tmp_path, family, "model 'b': .*a shard lies beside its index")

    def test_an_output_that_cannot_be_written(self, tmp_path: Path, family: Family) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointError, match="file: is a file; a folder was to be written"):
            merge(DOCUMENTS["linear"], tmp_path / "file", family)


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


MEASURED = """
import json, sys, threading
from pathlib import Path
from mango.checkpoints import ModelSource
from mango.merging import merge

def anonymous_bytes():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous_bytes())

documents, out, sources = json.loads(sys.argv[1])
models = {name: ModelSource(source=source) for name, source in sources.items()}
small = {**models, **{name: models["small"] for name in "abc"}}
for document in documents:
    merge(document, out + "-warm", small)
    before, peak, done = anonymous_bytes(), 0, threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    merge(document, out, models)
    done.set()
    watcher.join()
    print(peak - before)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_a_few_pieces(tmp_path: Path, make_model: MakeModel) -> None:
    """Models of 200 MB, most of it in two tensors of 96 MB, are merged in less memory than half of one tensor."""
    make_model("small", 1)
    sources = {"small": str(tmp_path / "small")}
    rows = 3 * 2**20
    config = tiny_llama(0, tie_word_embeddings=False).config
    config.vocab_size = rows
    for seed, name in enumerate("abc"):
        folder = tmp_path / name
        folder.mkdir()
        model = tiny_llama(seed, tie_word_embeddings=False).bfloat16()
        model.config.vocab_size = rows
        model.config.save_pretrained(folder)
        save_tokenizer(folder)
        tensors = dict(model.state_dict())
        for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
            generator = torch.Generator().manual_seed(seed)
            tensors[tensor] = torch.randn(rows, 16, generator=generator).bfloat16()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        sources[name] = str(folder)
    data = document("ties", "b", "c", weight=1.0, density=0.2) | {"base_model": "a"}
    argument = json.dumps([[DOCUMENTS["linear"], data], str(tmp_path / "out"), sources])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, argument], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 190e6
    growth = [int(line) for line in done.stdout.split()]
    assert len(growth) == 2
    assert max(growth) < 96 * 2**20 / 2, growth
