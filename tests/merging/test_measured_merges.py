"""Documents whose methods measure the models on text: planned, run, interrupted, and compared with the functions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
)

import mango
from mango.checkpoints import ModelSource, open_model, sha256_file
from mango.errors import MergeError
from mango.merging import load_document, merge, merge_tensors, plan
from mango.merging.calibration import collect_fishers, collect_grams
from mango.merging.measuring import Measurement
from mango.merging.methods import fisher, linear, regmean
from tests.merging.conftest import VOCABULARY, MakeModel, Stopped, hashes, problems, save_tokenizer, tiny_llama

pytestmark = pytest.mark.usefixtures("one_thread")
Family = dict[str, ModelSource]
ROOT = Path(__file__).parents[2]


def document(method: str, text: Path, *names: str, **changes: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "models": [{"model": name} for name in names or ("a", "b")],
        "calibration": {"data": str(text), "sequences": 3, "tokens": 12},
        "dtype": "float32",
        **changes,
    }


def sequences(data: dict[str, Any], family: Family) -> list[torch.Tensor]:
    """The tokens that a document draws, each ``[1, tokens]``."""
    return list(plan(data, family).measurements[0].text.input_ids.unsqueeze(1))


def test_fisher_is_the_function_on_what_the_models_show(text: Path, family: Family, tmp_path: Path) -> None:
    data = document("fisher", text)
    data["models"][1]["parameters"] = {"weight": 2.0}
    merge(data, tmp_path / "out", family)
    drawn = sequences(data, family)
    models = [open_model(family[name].source, dtype=torch.float32) for name in "ab"]
    fishers = [collect_fishers(model, drawn) for model in models]
    merged = open_model(tmp_path / "out", dtype=torch.float32)
    for name, parameter in merged.named_parameters():
        pair = [model.get_parameter(name).detach() for model in models]
        wanted = fisher(pair, fishers=[found[name].float() for found in fishers], weight=[1.0, 2.0])
        assert torch.allclose(parameter, wanted, rtol=1e-5, atol=1e-7), name
        assert not torch.allclose(parameter, linear(pair, weight=[1.0, 2.0]), rtol=1e-4, atol=1e-6), name


def test_regmean_takes_gram_matrices_for_linear_layers_and_the_mean_for_the_rest(
    text: Path, family: Family, tmp_path: Path
) -> None:
    data = document("regmean", text)
    report = merge(data, tmp_path / "out", family)
    drawn = sequences(data, family)
    models = [open_model(family[name].source, dtype=torch.float32) for name in "ab"]
    grams = [collect_grams(model, drawn) for model in models]
    merged = open_model(tmp_path / "out", dtype=torch.float32)
    for name, parameter in merged.named_parameters():
        pair = [model.get_parameter(name).detach() for model in models]
        wanted = regmean(pair, grams=[found.get(name) for found in grams])
        if name == "model.embed_tokens.weight":  # the head is the embedding, which is no linear layer
            wanted = linear(pair, weight=[1.0, 1.0])
        assert torch.allclose(parameter, wanted, rtol=1e-5, atol=1e-6), name
    assert "regmean: 8 tensors of no linear layer are averaged" in report.notes


def test_layers_that_gpt2_stores_turned_are_linear_layers_too(tmp_path: Path, text: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=VOCABULARY, n_positions=32)
    places = {}
    for name in "ab":
        model = GPT2LMHeadModel(config)
        model.save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name)
        places[name] = ModelSource(source=str(tmp_path / name))
    data = document("regmean", text)
    merged = merge_tensors(data, places)
    drawn = sequences(data, places)
    name = "transformer.h.0.mlp.c_fc.weight"
    layers, grams = [], []
    for key in "ab":
        model = open_model(places[key].source, dtype=torch.float32)
        layers.append(model.get_parameter(name).detach().T)
        rows: list[torch.Tensor] = []
        hook = model.get_submodule("transformer.h.0.mlp.c_fc").register_forward_pre_hook(
            lambda _, inputs, rows=rows: rows.append(inputs[0][0].detach().double())
        )
        with torch.no_grad():
            for tokens in drawn:
                model(input_ids=tokens)
        hook.remove()
        grams.append(torch.cat(rows).T @ torch.cat(rows))
    assert torch.allclose(merged[name].T, regmean(layers, grams=grams), rtol=1e-5, atol=1e-6)


def test_each_model_may_have_text_of_its_own(tmp_path: Path, text: Path, family: Family) -> None:
    (tmp_path / "other.txt").write_text("on the mat sat the cat\n" * 40)
    data = document("fisher", text)
    data["calibration"]["models"] = {"b": {"data": str(tmp_path / "other.txt")}}
    first, second = plan(data, family).measurements
    assert not torch.equal(first.text.input_ids, second.text.input_ids)
    assert torch.equal(first.text.input_ids, plan(document("fisher", text), family).measurements[0].text.input_ids)


def test_the_plan_says_what_is_measured_and_reads_no_weight(
    text: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mango.checkpoints.Checkpoint.tensor", lambda *_: pytest.fail("a weight was read"))
    ready = plan(document("regmean", text), family)
    assert [(one.key, one.kind) for one in ready.measurements] == [("a", "grams"), ("b", "grams")]
    widths = [16, 16, 16, 16, 16, 16, 24] * 3  # q, k, v, o, gate, up, down
    assert ready.measurements[0].num_bytes == sum(8 * width**2 for width in widths)
    assert ready.measurements[0].num_tokens == 36


def test_a_tied_head_is_known_by_its_embedding(make_model: MakeModel, text: Path) -> None:
    """One model ties, the other does not: the result has a head of its own."""
    places = {
        "a": ModelSource(source=str(make_model("a", 0))),
        "b": ModelSource(source=str(make_model("b", 1, tie_word_embeddings=False))),
    }
    for method in ("fisher", "regmean"):
        data = document(method, text)
        merged = merge_tensors(data, places)
        ready = plan(data, places)
        (head,) = (output for output in ready.tensors if output.spec.name == "lm_head.weight")
        assert all(head.statistics)
        assert merged["lm_head.weight"].shape == (VOCABULARY, 16)


def test_a_recipe_inside_of_another_is_measured_as_what_it_makes(text: Path, family: Family) -> None:
    inner = {"merge_method": "linear", "models": [{"model": n, "parameters": {"weight": 1.0}} for n in "ab"]}
    data = document("fisher", text)
    data["models"] = [{"model": inner}, {"model": "c"}]
    made = {**merge_tensors({**inner, "dtype": "float32"}, family)}
    model = tiny_llama(0)
    model.load_state_dict(made, strict=False)
    model.tie_weights()
    outer = merge_tensors(data, family)
    by_hand = merge_tensors(document("fisher", text, "made", "c"), {"made": model, "c": family["c"]})
    assert all(torch.allclose(outer[name], by_hand[name], rtol=1e-4, atol=1e-6) for name in outer)


def test_a_measuring_recipe_inside_of_another_is_measured_first(text: Path, family: Family) -> None:
    inner = document("fisher", text)
    merged = merge_tensors({"merge_method": "passthrough", "models": [{"model": inner}]}, family)
    alone = merge_tensors(document("fisher", text), family)
    assert all(torch.equal(merged[name].float(), alone[name]) for name in alone)


def test_adapters_are_part_of_what_is_measured(text: Path, family: Family, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    name, generator = "base_model.model.model.layers.0.mlp.up_proj", torch.Generator().manual_seed(0)
    lora = {
        f"{name}.lora_A.weight": torch.randn(2, 16, generator=generator),
        f"{name}.lora_B.weight": torch.randn(24, 2, generator=generator),
    }
    (tmp_path / "lora").mkdir()
    save_file(lora, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]})
    )
    adapted = f"{family['a'].source}+{tmp_path / 'lora'}"
    found = []
    for first in (family["a"].source, adapted):
        ready = plan(document("regmean", text, first, "b"), family)
        ready.measurements[0].run(tmp_path / f"{len(found)}.bin", "cpu")
        found.append(ready.measurements[0].load("model.layers.1.mlp.up_proj.weight"))
    assert not torch.allclose(found[0], found[1])


def test_what_was_measured_before_a_stop_is_not_measured_again(
    text: Path, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = document("fisher", text, "a", "b", "c")
    merge(data, tmp_path / "calm", family)
    runs: list[str] = []
    load = mango.merging.running.Runnable.load

    def counted(self: Any, device: Any = "cpu") -> Any:
        runs.append(self.model.key)
        if len(runs) == 3:
            raise Stopped
        return load(self, device)

    monkeypatch.setattr("mango.merging.running.Runnable.load", counted)
    with pytest.raises(Stopped):
        merge(data, tmp_path / "out", family)
    assert runs == ["a", "b", "c"]
    merge(data, tmp_path / "out", family)
    assert runs == ["a", "b", "c", "c"]
    said = capsys.readouterr().err
    assert [f"measure fishers of {name}: was there already" in said for name in "abc"] == [True, True, False]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    assert not list(tmp_path.glob(".out.*"))


@pytest.mark.parametrize("moment", ["seal", "put_in_place", "remove_old", "forget"])
def test_a_stop_behind_the_last_tensor_measures_nothing_again(
    text: Path, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    data = document("fisher", text)
    calm = merge(data, tmp_path / "calm", family)
    with monkeypatch.context() as patched:
        patched.setattr(f"mango.merging.workspace.{moment}", stop)
        with pytest.raises(Stopped):
            merge(data, tmp_path / "out", family)
    monkeypatch.setattr("mango.merging.running.Runnable.load", stop)  # it has to run no model
    assert merge(data, tmp_path / "out", family).num_resumed == calm.num_tensors
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    assert not list(tmp_path.glob(".out.*"))


@pytest.mark.slow
def test_kills_of_merges_that_measure_change_no_bit_and_lose_no_step(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.robustness.measured_kills", "--kills", "6", "--rows", "64", "--seed", "1"]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert (found["kills"], found["different"], found["lost"], found["left"]) == (6, [], [], [])
    assert found["runs to the end"] >= 1


def test_what_was_damaged_meanwhile_is_measured_again(text: Path, family: Family, tmp_path: Path) -> None:
    one, again = (plan(document("fisher", text), family).measurements[0] for _ in range(2))
    assert isinstance(one, Measurement)
    one.run(tmp_path / "fishers.bin", "cpu")
    before = one.load("model.norm.weight").clone()
    with (tmp_path / "fishers.bin").open("r+b") as file:
        file.write(b"\x01" * 64)
    again.run(tmp_path / "fishers.bin", "cpu")
    assert torch.equal(again.load("model.norm.weight"), before)


def test_text_that_changed_makes_another_merge(text: Path, family: Family, tmp_path: Path) -> None:
    from mango.merging.workspace import work_of

    marks = []
    for _ in range(2):
        marks.append(work_of(plan(document("fisher", text), family), 1 << 30, "cpu").mark)
        text.write_text(text.read_text() + "the cat\n")
    assert marks[0] != marks[1]


def test_an_error_leaves_nothing_behind(
    text: Path, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MergeError("calibration: it does not go")

    monkeypatch.setattr("mango.merging.measuring.add_fishers", fail)
    with pytest.raises(MergeError, match="it does not go"):
        merge(document("fisher", text), tmp_path / "out", family)
    assert not list(tmp_path.glob(".out.*"))
    assert not (tmp_path / "out").exists()


def test_the_result_says_how_it_was_made(text: Path, family: Family, tmp_path: Path) -> None:
    data = document("regmean", text)
    data["calibration"]["models"] = {"b": {"data": str(text)}}  # it names models by where they are, here too
    merge(data, tmp_path / "out", family)
    again = load_document(tmp_path / "out" / "mango_merge.yaml")
    assert again.calibration is not None
    assert again.calibration.data == text
    assert set(again.calibration.models) == {family["b"].source}
    merge(again, tmp_path / "again", family)
    assert sha256_file(tmp_path / "again" / "model.safetensors") == sha256_file(tmp_path / "out" / "model.safetensors")


def test_models_that_cannot_be_run_are_refused_in_the_plan(text: Path, family: Family, tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=VOCABULARY, pad_token_id=0,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    save_tokenizer(tmp_path / "judge")
    judge = {"a": ModelSource(source=str(tmp_path / "judge"))}
    with pytest.raises(MergeError, match="model 'a' cannot be run on calibration text: it is built for sequence-class"):
        plan(document("fisher", text, "a"), judge)
    bare = {name: dict(tiny_llama(seed).state_dict()) for seed, name in enumerate("ab")}
    with pytest.raises(MergeError, match="model 'a' cannot be run on calibration text: it has no config") as caught:
        plan(document("fisher", text), bare)
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(MergeError, match=r"calibration\.tokens: 33 is more than the 32 positions of model 'a'"):
        plan(document("fisher", text, calibration={"data": str(text), "tokens": 33}), family)


def test_mixtures_whose_class_joins_their_experts_are_refused(text: Path, tmp_path: Path) -> None:
    """The class holds the experts of a layer as one tensor, and the checkpoint one for each."""
    config = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=VOCABULARY, max_position_embeddings=32, num_local_experts=2,
    )  # fmt: skip
    places = {}
    for name in "ab":
        MixtralForCausalLM(config).save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name)
        places[name] = ModelSource(source=str(tmp_path / name))
    with pytest.raises(MergeError, match="which its class holds, or stores it in another layout"):
        plan(document("fisher", text), places)


def test_vocabularies_that_are_aligned_have_no_fisher_information(
    make_model: MakeModel, text: Path, tmp_path: Path
) -> None:
    places = {
        "a": ModelSource(source=str(make_model("a", 0))),
        "b": ModelSource(source=str(make_model("b", 1, text="a dog ran to the cat"))),
    }
    (tmp_path / "text.txt").write_text("the cat t a " * 400)
    data = document("fisher", text, tokenizer={"source": "union"}, base_model="a")
    with pytest.raises(MergeError, match=r"embed_tokens\.weight: fisher knows what the rows of model"):
        plan(data, places)
    assert len(plan({**data, "merge_method": "regmean"}, places).measurements) == 2


FISHER = "merge_method: fisher\nmodels:\n  - model: a\n  - model: b\n"


def test_wrong_sections_are_reported_with_line_and_suggestion(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        FISHER + "calibration:\n  dat: text.txt\n  sequences: 0\n  split: tests\n  models:\n    aa: {data: x.txt}\n",
    )
    wanted = [
        ("5", "calibration.data: is missing"),
        ("6", "calibration.dat: unknown key; did you mean 'data'?"),
        ("7", "calibration.sequences: 0: must be greater than or equal to 1"),
        ("8", "calibration.split: 'tests' is not 'train', 'validation' or 'test'; did you mean 'test'?"),
    ]
    assert len(found) == len(wanted)
    for line, (number, message) in zip(sorted(found), wanted, strict=True):
        assert line.startswith(f"{number} {message}"), line
    found = problems(tmp_path, FISHER + "calibration:\n  data: x.txt\n  models:\n    aa: {data: x.txt}\n")
    assert found == ["8 calibration.models.aa: no model of this document is called so; did you mean 'a'? Known: a, b"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (FISHER, "1 merge_method: fisher measures the models on text: name it"),
        (
            FISHER.replace("fisher", "karcher") + "calibration: {data: x.txt}\n",
            "calibration: nothing here reads text: leave it out",
        ),
        (FISHER + "calibration: {data: x.txt}\nlearn: {}\n", "learn: fisher learns nothing; adamerging"),
    ],
)
def test_text_without_use_and_use_without_text(tmp_path: Path, lines: str, message: str) -> None:
    (found,) = problems(tmp_path, lines)
    assert message in found
