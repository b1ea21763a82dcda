"""Mixtures of experts: they open, they are the dense model where they must be, and the gate knows its prompts."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mango.checkpoints import verify
from mango.cli import app
from mango.errors import ConfigError, IncompatibleBlocksError, MergeError
from mango.surgery.moe import assemble, load_moe_document, plan_moe
from tests.surgery.conftest import TINY, MakeModel, load, logits_of, random_model

PROMPTS = (["def add(a, b):\n    return a + b"], ["It was the best of times"])
TARGET = {"llama": "Mixtral", "mistral": "Mixtral", "qwen2": "Qwen2Moe", "qwen3": "Qwen3Moe"}


def document(base: Path, *sources: Path, **changes: Any) -> dict[str, Any]:
    experts = [
        {"source_model": str(source), "positive_prompts": PROMPTS[i % 2] + [f"{i}"]} for i, source in enumerate(sources)
    ]
    return {"base_model": str(base), "experts": experts, **changes}


def opened(folder: Path) -> Any:
    """Open a mixture and check that the checkpoint holds what the class wants, and no more."""
    verify(folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert [info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")].count([]) + [
        info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    ].count(set()) == 4
    model.train(False)
    return model


@pytest.mark.parametrize("gate_mode", ["hidden", "cheap_embed", "random"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_equal_experts_are_the_dense_model(family: str, gate_mode: str, make_model: MakeModel, tmp_path: Path) -> None:
    """Whatever the gate says: with the chosen weights summing to one, equal experts are one expert."""
    model = random_model(family, 0, tie_word_embeddings=gate_mode == "random")
    folder = make_model("dense", model)
    report = assemble(document(folder, folder, folder, folder, gate_mode=gate_mode), tmp_path / "moe")
    assert report.architecture == f"{TARGET[family]}ForCausalLM"
    assert "all experts are one model" in report.notes[0]
    mixture = opened(tmp_path / "moe")
    torch.testing.assert_close(logits_of(mixture), logits_of(model), rtol=0, atol=2e-5)
    ids = torch.tensor([[1, 2, 3]])
    generated = mixture.generate(ids, max_new_tokens=5, do_sample=False)
    dense = load(folder).generate(ids, max_new_tokens=5, do_sample=False)
    assert generated.tolist() == dense.tolist()
    assert report.num_parameters == sum(p.numel() for p in mixture.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_shared_expert_without_prompts_is_always_on(family: str, make_model: MakeModel, tmp_path: Path) -> None:
    model = random_model(family, 0)
    dense, other = make_model("dense", model), make_model("other", random_model(family, 1))
    shared = [{"source_model": str(dense), "residual_scale": 1.0}]
    given = document(dense, other, other, shared_experts=shared)
    for entry in given["experts"]:
        entry["residual_scale"] = 0.0
    assemble(given, tmp_path / "moe")
    torch.testing.assert_close(logits_of(opened(tmp_path / "moe")), logits_of(model), rtol=0, atol=2e-5)
    shared[0]["positive_prompts"] = ["x = 3"]
    assemble(given, tmp_path / "gated")
    gated = opened(tmp_path / "gated")
    assert gated.model.layers[0].mlp.shared_expert_gate.weight.detach().norm() == pytest.approx(1, abs=1e-3)
    assert (logits_of(gated) - logits_of(model)).abs().max() > 0.01


def test_uniform_gates_are_the_mean_of_the_experts(make_model: MakeModel, tmp_path: Path) -> None:
    one, two = random_model("llama", 0, num_hidden_layers=1), random_model("llama", 1, num_hidden_layers=1)
    folders = make_model("one", one), make_model("two", two)
    assemble(document(folders[0], *folders, gate_mode="uniform"), tmp_path / "moe")
    states = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    mixture = opened(tmp_path / "moe")
    with torch.no_grad():
        wanted = (one.model.layers[0].mlp(states) + two.model.layers[0].mlp(states)) / 2
        torch.testing.assert_close(mixture.model.layers[0].mlp(states), wanted, rtol=0, atol=1e-5)


CODE = [
    "def read(path):\n    with open(path) as file:\n        return file.read()",
    "import os\nclass A(object):\n    x = 1",
]
PROSE = [
    "She looked at him for a moment, and then turned away without a word.",
    "The old house stood at the end of the lane, and nobody had lived there since the war.",
]


def chosen(folder: Path, text: str) -> torch.Tensor:
    """The expert that every layer puts first for each token, ``[layers, tokens]``."""
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    model = opened(folder)
    with torch.no_grad():
        logits = model(input_ids=ids, output_router_logits=True).router_logits
    return torch.stack([layer.view(-1, layer.shape[-1]).argmax(-1) for layer in logits])


@pytest.mark.parametrize("gate_mode", ["hidden", "hidden_avg", "cheap_embed"])
def test_the_gate_sends_prompts_to_their_expert(gate_mode: str, tmp_path: Path) -> None:
    given = {
        "base_model": str(TINY / "base"),
        "gate_mode": gate_mode,
        "dtype": "float32",
        "experts_per_token": 1,
        "experts": [
            {"source_model": str(TINY / "code"), "positive_prompts": CODE, "negative_prompts": PROSE},
            {"source_model": str(TINY / "novels"), "positive_prompts": PROSE, "negative_prompts": CODE},
        ],
    }
    assemble(given, tmp_path / "moe")
    for expert, prompts in enumerate((CODE, PROSE)):
        for prompt in prompts:
            first = chosen(tmp_path / "moe", "<|endoftext|>" + prompt)
            if gate_mode == "hidden":
                assert first[0, -1] == expert  # the first layer sees exactly the states that made its gate
            if gate_mode == "hidden_avg":
                assert (first[:, 1:] == expert).float().mean() > 0.6
    if gate_mode == "hidden_avg":
        code = (chosen(tmp_path / "moe", "for i in range(10):\n    print(self.name[i])\n") == 0).float().mean()
        prose = (chosen(tmp_path / "moe", "He had never seen anything like it in all his life.") == 0).float().mean()
        assert code > prose + 0.2  # text that made no gate


def test_each_expert_alone_is_its_model_on_one_feed_forward_layer(make_model: MakeModel, tmp_path: Path) -> None:
    """With one expert a token, the chosen expert's own layer runs: gates by hand, since prompts say who is chosen."""
    folders = [make_model(f"m{seed}", random_model("llama", seed, num_hidden_layers=1)) for seed in range(3)]
    given = document(folders[0], *folders, experts_per_token=1, gate_mode="random", seed=3)
    report = assemble(given, tmp_path / "moe")
    assert report.num_active_parameters < report.num_parameters
    assert report.notes == ("3 experts are no power of two, which llama.cpp wants",)
    block = opened(tmp_path / "moe").model.layers[0].mlp
    states = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        picks = (states @ block.gate.weight.T).argmax(-1)
        assert set(picks.tolist()) == {0, 1, 2}
        found = block(states.unsqueeze(0))[0]
        for expert, folder in enumerate(folders):
            own = load(folder).model.layers[0].mlp(states)
            torch.testing.assert_close(found[picks == expert], own[picks == expert], rtol=0, atol=1e-5)


def test_noise_and_types_and_seeds(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model("dense", random_model("llama", 0))
    given = document(folder, folder, folder, dtype="bfloat16", gate_mode="uniform_random")
    for entry in given["experts"]:
        entry["noise_scale"] = 0.01
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assemble(given | {"seed": seed}, tmp_path / name)
        results.append((tmp_path / name / "model.safetensors").read_bytes())
    assert results[0] == results[1] != results[2]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"
    gates = opened(tmp_path / "a").model.layers[0].mlp
    assert gates.gate.weight.abs().max() <= 32**-0.5
    assert not torch.equal(gates.experts.down_proj[0], gates.experts.down_proj[1])


def test_an_expert_may_be_a_model_with_an_adapter(make_model: MakeModel, tmp_path: Path) -> None:
    from mango.surgery.lora import ExtractionParams, extract_adapter

    base, other = random_model("llama", 0), random_model("llama", 0)
    other.model.layers[0].mlp.up_proj.weight.data += 0.1
    folders = make_model("base", base), make_model("other", other)
    extract_adapter(str(folders[1]), str(folders[0]), tmp_path / "adapter", ExtractionParams(rank=2))
    adapted = f"{folders[0]}+{tmp_path / 'adapter'}"
    given = document(folders[0], folders[0], folders[0], gate_mode="uniform")
    given["experts"][0]["source_model"] = given["experts"][1]["source_model"] = adapted
    assemble(given, tmp_path / "moe")
    experts = opened(tmp_path / "moe").model.layers[0].mlp.experts
    torch.testing.assert_close(
        experts.gate_up_proj[0, 48:], other.model.layers[0].mlp.up_proj.weight, rtol=0, atol=1e-5
    )


MERGEKIT = """
base_model: {base}
gate_mode: hidden # one of "hidden", "cheap_embed", or "random"
dtype: bfloat16 # output dtype (float32, float16, or bfloat16)
## (optional)
# experts_per_token: 2
experts:
  - source_model: {code}
    positive_prompts:
      - "def main():"
    ## (optional)
    # negative_prompts:
    #   - "This is a prompt expert_model_1 should not be used for"
  - source_model:
      model: {{path: {novels}}}
    positive_prompts:
      - "Once upon a time"
    negative_prompts: ["import os"]
    residual_scale: 0.5
"""


def test_documents_written_for_mergekit_are_read_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "moe.yaml"
    file.write_text(MERGEKIT.format(base=TINY / "base", code=TINY / "code", novels=TINY / "novels"))
    for extra, made in ((["--plan"], False), ([], True)):
        with pytest.raises(SystemExit) as stop:
            app.main(["moe", str(file), str(tmp_path / "out"), "--json", *extra])
        assert stop.value.code == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["architecture"] == "MixtralForCausalLM"
        assert (tmp_path / "out").exists() == made
    written = load_moe_document(tmp_path / "out" / "mango_moe.yaml")
    assert written.experts[1].residual_scale == 0.5
    assert len(facts["gate_overlap"]) == 4


def test_every_problem_of_a_document_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "moe.yaml"
    file.write_text(
        textwrap.dedent("""\
        base_model: a
        gate_mod: hidden
        dtype: bfloat17
        experts_per_token: 3
        architecture: mixtrel
        experts:
          - source_model: a
            positive_promts: [x]
          - source_model: b
            positive_prompts: [y]
            noise_scale: -1
        """)
    )
    with pytest.raises(ConfigError, match=r"moe\.yaml") as caught:
        load_moe_document(file)
    found = [line.removeprefix(f"{file}:") for line in str(caught.value).splitlines()]
    for wanted in (
        "2 gate_mod: unknown key; did you mean 'gate_mode'?",
        "3 dtype: 'bfloat17' is not",
        "4 experts_per_token: 3 is more than the 2 experts",
        "5 architecture: 'mixtrel' is no architecture that is written; did you mean 'mixtral'?",
        "8 experts.0.positive_promts: unknown key; did you mean 'positive_prompts'?",
        "11 experts.1.noise_scale: -1",
    ):
        assert [line for line in found if line.startswith(wanted)], (wanted, found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "deepseek"}, "models that bring code are not run: use Qwen MoE"),
        ({"gate_mode": "uniform", "experts_per_token": 1}, "all 2 must run"),
        ({"experts": [{"source_model": "a"}, {"source_model": "a"}]}, "needs prompts"),
        ({"experts": [{"source_model": "a", "positive_prompts": ["x"]}] * 2}, "all have the same prompts"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_moe(document(Path("a"), Path("a"), Path("b")) | changes)


def test_models_that_do_not_fit_are_refused_and_nothing_is_written(make_model: MakeModel, tmp_path: Path) -> None:
    llama, wide = (
        make_model("llama", random_model("llama", 0)),
        make_model("wide", random_model("llama", 0, intermediate_size=64)),
    )
    qwen3 = make_model("qwen3", random_model("qwen3", 0))
    biased = make_model("biased", random_model("llama", 0, mlp_bias=True, attention_bias=True))
    out = tmp_path / "out"
    with pytest.raises(IncompatibleBlocksError) as caught:
        assemble(document(llama, wide, qwen3), out)
    lines = str(caught.value).splitlines()
    assert "intermediate_size 64 against 48" in lines[0]
    assert "is of type qwen3, the base" in lines[1]
    with pytest.raises(MergeError, match="model 'nowhere': nowhere: there is no such folder"):
        assemble(document(llama, llama, Path("nowhere")), out)
    shared = [{"source_model": str(llama)}]
    with pytest.raises(MergeError, match="Mixtral has no shared expert"):
        assemble(document(llama, llama, llama, shared_experts=shared, architecture="mixtral"), out)
    with pytest.raises(MergeError, match="shared_experts: 2 of them"):
        assemble(document(llama, llama, llama, shared_experts=shared * 2), out)
    with pytest.raises(MergeError, match="models of type qwen3 with shared experts cannot become"):
        assemble(document(qwen3, qwen3, qwen3, shared_experts=[{"source_model": str(qwen3)}]), out)
    with pytest.raises(MergeError) as caught_biases:
        assemble(document(biased, biased, biased), out)
    assert len(str(caught_biases.value).splitlines()) == 2
    with pytest.raises(MergeError, match="Qwen3 MoE cannot be made of llama models"):
        assemble(document(llama, llama, llama, architecture="qwen3"), out)
    given = document(llama, llama, llama)
    given["experts"][0]["negative_prompts"] = given["experts"][0]["positive_prompts"]
    with pytest.raises(MergeError, match="positive and negative prompts give the same states"):
        assemble(given, out)
    broken = random_model("llama", 1)
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(MergeError, match=r"experts.0.w3.weight: has elements that are not finite"):
        assemble(document(llama, make_model("broken", broken), llama), out)
    assert not out.exists()
