"""AdaMerging: coefficients that calibration text teaches, against gradients of the whole merge written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

from mango.checkpoints import ModelSource, open_model, sha256_file
from mango.errors import ConfigError, MergeError
from mango.merging import MergeDocument, load_document, merge, merge_tensors, plan
from mango.merging.methods import adamerging_pp
from tests.merging.conftest import Stopped, hashes, problems, tiny_llama

pytestmark = pytest.mark.usefixtures("one_thread")
Family = dict[str, ModelSource]


def document(text: Path, method: str = "adamerging", **changes: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": "base",
        "models": [{"model": "a"}, {"model": "b"}],
        "calibration": {"data": str(text), "sequences": 4, "tokens": 10},
        "learn": {"steps": 3, "batch_size": 2, "learning_rate": 0.02},
        "dtype": "float32",
        **changes,
    }


def whole_merge(family: Family, data: dict[str, Any], *, by_layer: bool) -> torch.Tensor:
    """Learn by autograd through the merge of all weights at once, and return the coefficients by group and model."""
    base, *models = (
        dict(open_model(family[name].source, dtype=torch.float32).named_parameters()) for name in ("base", "a", "b")
    )
    changes = {name: [(model[name] - base[name]).detach() for model in models] for name in base}
    if data["merge_method"] == "adamerging_pp":
        for name in base:
            ends = [torch.eye(2)[k].tolist() for k in range(2)]
            pair = [model[name].detach() for model in models]
            changes[name] = [
                adamerging_pp(pair, base=base[name].detach(), coefficient=end, density=[0.2, 0.2])
                .sub(base[name])
                .detach()
                for end in ends
            ]
    groups = {name: ".".join(name.split(".")[:3]) if ".layers." in name else name for name in base}
    rows = {group: i for i, group in enumerate(dict.fromkeys(groups[name] for name in sorted_names(family, data)))}
    values = torch.full((len(rows) if by_layer else 1, 2), 0.3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([values], lr=data["learn"]["learning_rate"])
    ready = plan(data, family)
    assert ready.quest is not None
    tokens, order = ready.quest.text.input_ids, torch.randperm(4, generator=torch.Generator().manual_seed(0))
    skeleton = tiny_llama(0)
    for step in range(data["learn"]["steps"]):
        picked = tokens[order[[(2 * step + i) % 4 for i in range(2)]]]
        weights = {
            name: base[name].detach()
            + sum(
                values[rows[groups[name]] if by_layer else 0, k].float() * change
                for k, change in enumerate(changes[name])
            )
            for name in base
        }
        logits = functional_call(skeleton, weights, kwargs={"input_ids": picked}).logits
        log_probs = logits.log_softmax(-1)
        adam.zero_grad()
        (-(log_probs.exp() * log_probs).sum(-1).mean()).backward()
        adam.step()
    return values.detach()


def sorted_names(family: Family, data: dict[str, Any]) -> list[str]:
    return [output.spec.name for output in plan(data, family).tensors]


def learned(document: MergeDocument) -> dict[str, list[float]]:
    """Coefficients by model, in the order in which the document says them."""
    found = {}
    for entry in document.models or ():
        setting = entry.parameters["coefficient"]
        found[str(entry.model)] = [part["value"] for part in setting] if isinstance(setting, list) else [setting]
    return found


@pytest.mark.parametrize("method", ["adamerging", "adamerging_pp"])
@pytest.mark.parametrize("granularity", ["layer", "task"])
def test_it_learns_what_the_whole_merge_would(
    family: Family,
    text: Path,
    tmp_path: Path,
    method: str,
    granularity: str,
) -> None:
    data = document(text, method)
    data["learn"]["granularity"] = granularity
    wanted = whole_merge(family, data, by_layer=granularity == "layer")
    merge(data, tmp_path / "out", family)
    found = learned(load_document(tmp_path / "out" / "mango_merge.yaml"))
    assert len(found) == 2
    for column, values in enumerate(found.values()):
        # Adam divides by the size of the gradient, so that its steps are about the learning rate whatever it is
        assert sorted(values) == pytest.approx(sorted(wanted[:, column].tolist()), abs=2e-4)
        assert max(abs(value - 0.3) for value in values) > 0.03


def test_the_document_in_the_result_makes_it_again_without_text(family: Family, text: Path, tmp_path: Path) -> None:
    merge(document(text), tmp_path / "out", family)
    again = load_document(tmp_path / "out" / "mango_merge.yaml")
    assert (again.calibration, again.learn) == (None, None)
    text.unlink()
    merge(again, tmp_path / "again", family)
    assert sha256_file(tmp_path / "again" / "model.safetensors") == sha256_file(tmp_path / "out" / "model.safetensors")


def test_it_does_not_repeat_steps_after_a_stop(
    family: Family,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mango.merging.learning import _Runner

    data = document(text)
    merge(data, tmp_path / "calm", family)
    steps, step = [0], _Runner.step

    def counted(self: Any, *arguments: Any) -> Any:
        steps[0] += 1
        if steps[0] == 3:
            raise Stopped
        return step(self, *arguments)

    monkeypatch.setattr(_Runner, "step", counted)
    with pytest.raises(Stopped):
        merge(data, tmp_path / "out", family)
    merge(data, tmp_path / "out", family)
    assert steps == [4]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    assert not list(tmp_path.glob(".out.*"))


def test_coefficients_that_are_given_are_not_learned(family: Family) -> None:
    data = document(Path("x"), calibration=None, learn=None, parameters={"coefficient": 0.5})
    tensors = merge_tensors({key: value for key, value in data.items() if value is not None}, family)
    weights = {**data, "merge_method": "task_arithmetic", "parameters": {"weight": 0.5}}
    wanted = merge_tensors({key: value for key, value in weights.items() if value is not None}, family)
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)


def test_learning_lowers_the_entropy(family: Family, text: Path) -> None:
    data = document(text, learn={"steps": 8, "batch_size": 4, "learning_rate": 0.04})
    ready = plan(data, family)
    assert ready.quest is not None
    found = []
    for coefficients in (None, data):
        plain = {**data, "learn": None, "calibration": None} if coefficients is None else data
        model = tiny_llama(0)
        tensors = merge_tensors({k: v for k, v in plain.items() if v is not None}, family)
        model.load_state_dict(tensors, strict=False)
        model.tie_weights()
        with torch.no_grad():
            log_probs = model(input_ids=ready.quest.text.input_ids).logits.log_softmax(-1)
        found.append(float(-(log_probs.exp() * log_probs).sum(-1).mean()))
    assert found[1] < found[0] - 3e-4  # random weights leave little to learn
    assert found[0] <= math.log(64)


def test_what_cannot_be_learned_is_refused(family: Family, text: Path, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "merge_method: adamerging\nbase_model: b\nmodels: [{model: a}]\nlearn: {steps: 3}\n")
    assert "learn: has no text to learn from" in found
    sliced = {"sources": [{"model": "base", "layer_range": [0, 3]}, {"model": "a", "layer_range": [0, 3]}]}
    data = {key: value for key, value in document(text, slices=[sliced]).items() if key != "models"}
    with pytest.raises(ConfigError, match="which slices and modules cut anew: list whole models"):
        plan(data, family)
    inner = {"merge_method": "passthrough", "models": [{"model": document(text)}]}
    with pytest.raises(MergeError, match="a recipe inside of another has fixed values"):
        plan(inner, family)
