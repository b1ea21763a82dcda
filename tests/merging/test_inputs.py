"""Nested recipes, methods per tensor, models in memory, quantised weights, other vocabularies, missing biases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import mango
from mango.checkpoints import ModelSource
from mango.errors import ConfigError, MergeError
from mango.merging import load_document, load_documents, merge, merge_tensors, plan
from tests.merging.conftest import MakeModel, tiny_llama

Family = dict[str, ModelSource]


def weights(source: ModelSource | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(source.source if isinstance(source, ModelSource) else source) / "model.safetensors")


def linear(*names: Any, **more: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": n} for n in names], "parameters": {"weight": 1.0}, **more}


class TestNestedRecipes:
    def test_a_model_may_be_a_document(self, tmp_path: Path, family: Family) -> None:
        inner = linear("a", "b")
        outer = linear(inner, "c")
        merge(outer, tmp_path / "out", family)
        parts = {name: weights(family[name]) for name in "abc"}
        for name, tensor in weights(tmp_path / "out").items():
            a, b, c = (parts[model][name].double() for model in "abc")
            exact = ((((a + b) / 2).float().double() + c) / 2).bfloat16()  # the inner result is kept in float32
            assert torch.equal(tensor, exact), name
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "base", "c", "out"]
        again = load_document(tmp_path / "out" / "mango_merge.yaml")
        assert all(torch.equal(t, weights(tmp_path / "out")[n]) for n, t in merge_tensors(again).items())

    def test_a_type_that_the_inner_document_names_is_kept(self, tmp_path: Path, family: Family) -> None:
        inner = linear("a", "b", dtype="float16")
        found = merge_tensors(linear(inner, "c"), family)
        name = "model.norm.weight"
        a, b, c = (weights(family[model])[name].double() for model in "abc")
        assert found[name].dtype == torch.float16
        assert torch.equal(found[name], ((((a + b) / 2).half().double() + c) / 2).half())

    def test_documents_of_one_file_use_each_other(self, tmp_path: Path, family: Family) -> None:
        path = tmp_path / "several.yml"
        path.write_text(
            "merge_method: linear\nname: first\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n---\n"
            "merge_method: slerp\nbase_model: first\nmodels: [{model: first}, {model: c}]\nparameters: {t: 0.5}\n"
        )
        (name, document), *rest = load_documents(path).items()
        assert (name, rest) == ("several", [])
        merge(document, tmp_path / "out", family)
        assert not (tmp_path / "first").exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name: x\nmodels: [{model: y}]\n---\nname: y\nmodels: [{model: x}]\n", "in a circle: x -> y -> x"),
            ("name: x\nmodels: [{model: a}]\n---\nname: x\nmodels: [{model: a}]\n", "two documents called 'x'"),
            (
                "models: [{model: a}]\n---\nmodels: [{modl: a}]\n",
                r":4 models\.0\.modl: unknown key; did you mean 'model'",
            ),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "several.yml"
        lines = "merge_method: linear\nparameters: {weight: 1}\n"
        path.write_text("---\n".join(part + lines for part in text.split("---\n")))
        if ":4" in message:
            message = message.replace(":4", ":5")
        with pytest.raises(ConfigError, match=message):
            load_documents(path)

    def test_results_that_nothing_uses_are_several(self, tmp_path: Path) -> None:
        path = tmp_path / "several.yml"
        one = "merge_method: linear\nmodels: [{model: a}]\nparameters: {weight: 1}\n"
        path.write_text(f"name: x\n{one}---\nname: y\n{one}")
        assert list(load_documents(path)) == ["x", "y"]
        with pytest.raises(ConfigError, match=r"makes 2 models \(x, y\)"):
            load_document(path)


def test_a_method_per_tensor(tmp_path: Path, family: Family) -> None:
    data = {
        "merge_method": [
            {"filter": "embed", "value": "passthrough"},
            {"filter": ".1.mlp", "value": "slerp"},
            {"value": "linear"},
        ],
        "slices": [{"sources": [{"model": "a", "layer_range": [0, 3]}, {"model": "b", "layer_range": [0, 3]}]}],
        "base_model": "a",
        "parameters": {"weight": 0.5, "t": 1.0},
    }
    with pytest.raises(ConfigError, match="passthrough takes 1"):
        plan(data, family)
    data["merge_method"] = [{"filter": ".1.mlp", "value": "slerp"}, {"value": "linear"}]
    found, a, b = merge_tensors(data, family), weights(family["a"]), weights(family["b"])
    for name, tensor in found.items():
        if ".1.mlp" in name:
            assert torch.equal(tensor, b[name])
        else:
            assert torch.equal(tensor, ((a[name].double() + b[name].double()) / 2).bfloat16())
    methods = {output.spec.name: output.method for output in plan(data, family).tensors}
    assert methods["model.layers.1.mlp.up_proj.weight"] == "slerp"
    assert methods["model.layers.0.mlp.up_proj.weight"] == "linear"
    data["merge_method"] = [{"filter": "mlp", "value": "slerpp"}]
    with pytest.raises(
        ConfigError, match=r"merge_method\.0\.value: unknown merge method 'slerpp'; did you mean"
    ) as caught:
        plan(data, family)
    assert "no method for the other tensors" in str(caught.value)


class TestMemory:
    def test_state_dicts_are_merged_without_a_file(self, family: Family) -> None:
        states = {name: weights(family[name]) for name in "ab"}
        found = mango.merge(linear("a", "b"), models=states)
        assert sorted(found) == sorted(states["a"])
        name = "model.layers.0.mlp.up_proj.weight"
        assert torch.equal(found[name], ((states["a"][name].double() + states["b"][name].double()) / 2).bfloat16())

    def test_a_module_gives_its_configuration(self, tmp_path: Path, family: Family) -> None:
        model = tiny_llama(7).bfloat16()
        report = mango.merge(linear("m", "a"), tmp_path / "out", {**family, "m": model})
        assert report.models["m"] == "memory"
        opened, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(loading.values())
        expected = (model.model.norm.weight.double() + weights(family["a"])["model.norm.weight"].double()) / 2
        assert torch.equal(opened.model.norm.weight, expected.bfloat16())

    def test_bare_weights_make_no_folder(self, tmp_path: Path, family: Family) -> None:
        states = {name: weights(family[name]) for name in "ab"}
        with pytest.raises(MergeError, match=r"none of the models has a config\.json"):
            mango.merge(linear("a", "b"), tmp_path / "out", states)
        assert not (tmp_path / "out").exists()

    def test_empty_and_scalar_tensors(self) -> None:
        states = {
            n: {"e": torch.zeros(0, 4), "s": torch.tensor(float(i)), "n": torch.tensor([3])} for i, n in enumerate("ab")
        }
        found = mango.merge(linear("a", "b"), models=states)
        assert found["e"].shape == (0, 4)
        assert found["s"].shape == ()
        assert float(found["s"]) == 0.5
        assert found["n"].tolist() == [3]
        states["b"]["n"] += 1
        with pytest.raises(MergeError, match="n: holds integers that differ"):
            mango.merge(linear("a", "b"), models=states)


class TestQuantised:
    def quantise(self, source: ModelSource, config: dict[str, Any], change: Any) -> dict[str, torch.Tensor]:
        folder = Path(source.source)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
        tensors, exact = {}, {}
        for name, tensor in weights(source).items():
            if name.endswith("proj.weight"):
                stored, exact[name] = change(name.removesuffix(".weight"), tensor.float())
                tensors |= stored
            else:
                tensors[name] = exact[name] = tensor
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return {name: tensor.double() for name, tensor in exact.items()}

    def check(self, tmp_path: Path, family: Family, exact: dict[str, torch.Tensor]) -> None:
        report = merge(linear("b", "a"), tmp_path / "out", family)
        other = weights(family["b"])
        for name, tensor in weights(tmp_path / "out").items():
            assert torch.equal(tensor, ((exact[name] + other[name].double()) / 2).bfloat16()), name
        assert any("are turned into float32 while they are read" in note for note in report.notes)
        assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())

    def test_fp8_in_blocks(self, tmp_path: Path, family: Family) -> None:
        def change(stem: str, tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            rows, columns = (-(-extent // 10) for extent in tensor.shape)
            scale = torch.rand(rows, columns) + 0.5
            small = (tensor * 20).to(torch.float8_e4m3fn)
            spread = scale.repeat_interleave(10, 0).repeat_interleave(10, 1)[: tensor.shape[0], : tensor.shape[1]]
            return {f"{stem}.weight": small, f"{stem}.weight_scale_inv": scale}, small.float() * spread

        exact = self.quantise(family["a"], {"quant_method": "fp8", "weight_block_size": [10, 10]}, change)
        self.check(tmp_path, family, exact)

    def test_eight_bits_of_bitsandbytes(self, tmp_path: Path, family: Family) -> None:
        def change(stem: str, tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            largest = tensor.abs().amax(1)
            small = (tensor / largest[:, None] * 127).round().to(torch.int8)
            stored = {f"{stem}.weight": small, f"{stem}.SCB": largest}
            stored[f"{stem}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
            return stored, small.float() * (largest / 127.0)[:, None]

        exact = self.quantise(family["a"], {"quant_method": "bitsandbytes", "load_in_8bit": True}, change)
        self.check(tmp_path, family, exact)

    def test_compressed_tensors(self, tmp_path: Path, family: Family) -> None:
        def change(stem: str, tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            scale = tensor.abs().amax(1, keepdim=True) / 400
            small = (tensor / scale).to(torch.float8_e4m3fn)
            return {f"{stem}.weight": small, f"{stem}.weight_scale": scale}, small.float() * scale

        config = {"quant_method": "compressed-tensors", "format": "float-quantized"}
        self.check(tmp_path, family, self.quantise(family["a"], config, change))

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ({"quant_method": "gptq"}, "only its own kernels define"),
            ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4-bit codes"),
            ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "codes are packed"),
        ],
    )
    def test_what_is_not_read_is_refused_with_the_reason(
        self, family: Family, config: dict[str, Any], reason: str
    ) -> None:
        path = Path(family["a"].source) / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))
        with pytest.raises(MergeError, match=reason):
            plan(linear("a", "b"), family)


class TestVocabularies:
    def test_union_of_two_vocabularies_reads_both(self, tmp_path: Path, make_model: MakeModel) -> None:
        sources = {
            "a": ModelSource(source=str(make_model("a", 1))),
            "b": ModelSource(source=str(make_model("b", 2, text="völlig anderer Text"))),
        }
        report = merge(linear("a", "b", tokenizer_source="union", base_model="a"), tmp_path / "out", sources)
        made = AutoTokenizer.from_pretrained(tmp_path / "out")
        old = {name: AutoTokenizer.from_pretrained(source.source).get_vocab() for name, source in sources.items()}
        assert set(made.get_vocab()) == {*old["a"], *old["b"]}
        assert "union of 2 vocabularies" in report.tokenizer
        rows = weights(tmp_path / "out")["model.embed_tokens.weight"]
        parts = {name: weights(source)["model.embed_tokens.weight"].double() for name, source in sources.items()}
        assert len(rows) == len(made.get_vocab())
        for token, number in made.get_vocab().items():
            own = [parts[name][old[name][token]] for name in "ab" if token in old[name]]
            exact = (own[0] + own[-1]) / 2
            assert torch.equal(rows[number], exact.bfloat16()), token
        model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(loading.values())
        assert model.config.vocab_size == len(rows)
        assert (
            made("the cat")["input_ids"] == AutoTokenizer.from_pretrained(sources["a"].source)("the cat")["input_ids"]
        )

    def test_another_template(self, tmp_path: Path, family: Family) -> None:
        merge(linear("a", "b", chat_template="chatml"), tmp_path / "out", family)
        talk = [{"role": "user", "content": "hi"}]
        made = AutoTokenizer.from_pretrained(tmp_path / "out")
        assert made.apply_chat_template(talk, tokenize=False) == "<|im_start|>user\nhi<|im_end|>\n"
        with pytest.raises(MergeError, match="neither a known name nor a Jinja template; did you mean 'chatml'"):
            plan(linear("a", "b", chat_template="chatmll"), family)

    @pytest.mark.parametrize(
        ("section", "message"),
        [
            ({"source": "x"}, "tokenizer.source: 'x' is neither base nor union nor a model"),
            ({"source": "base"}, "the document has no base_model"),
            ({"tokens": {"t": {"force": True}}}, "force needs a source"),
            ({"tokens": {"t": {"source": {"kind": "model_token", "model": "a"}}}}, "one of token and token_id"),
            ({"tokens": {"t": {"sorce": "a"}}}, "unknown key; did you mean 'source'"),
            ({"pad_to_multiple_of": 0}, "pad_to_multiple_of: 0: must be greater"),
        ],
    )
    def test_sections_that_make_no_sense(self, section: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            plan(linear("a", "b", tokenizer=section), {})
        assert message in str(caught.value)

    def test_a_policy_that_takes_what_is_not_there(self, family: Family) -> None:
        tokens = {"zebra": {"source": {"kind": "model_token", "model": "b", "token": "quagga"}}}
        with pytest.raises(MergeError, match="takes 'quagga' of model 'b', which it does not have"):
            plan(linear("a", "b", tokenizer={"tokens": tokens}), family)


class TestMissingTensors:
    def test_a_missing_bias_is_zero(self, tmp_path: Path, make_model: MakeModel) -> None:
        sources = {
            "a": ModelSource(source=str(make_model("a", 1, attention_bias=True))),
            "b": ModelSource(source=str(make_model("b", 2))),
        }
        report = merge(linear("a", "b"), tmp_path / "out", sources)
        name = "model.layers.0.self_attn.q_proj.bias"
        assert torch.equal(weights(tmp_path / "out")[name], (weights(sources["a"])[name].double() / 2).bfloat16())
        assert any("'b' lacks 12 biases, which are taken as zero" in note for note in report.notes)
        with pytest.raises(MergeError, match=r"has .*bias and 11 more .*; name 'a' as base_model"):
            plan(linear("b", "a"), sources)

    def test_a_config_that_promises_a_head(self, family: Family) -> None:
        path = Path(family["a"].source) / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": False}))
        with pytest.raises(MergeError, match=r"'a'.*head"):
            plan(linear("b", "a"), family)


def test_layer_types_follow_their_blocks(tmp_path: Path, family: Family) -> None:
    for name, kinds in (("a", ["x", "y", "z"]), ("b", ["p", "q", "r"])):
        path = Path(family[name].source) / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "layer_types": kinds}))
    slices = [{"sources": [{"model": m, "layer_range": r}]} for m, r in (("a", [0, 2]), ("b", [1, 3]))]
    config = plan({"merge_method": "passthrough", "slices": slices}, family).config
    assert config["num_hidden_layers"] == 4
    assert config["layer_types"] == ["x", "y", "q", "r"]
