from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from mango.errors import ConfigError
from mango.merging import MERGERS, MergeParams, load_document
from mango.merging.document import parse_mapping
from mango.merging.settings import evaluate

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "merge").glob("*.yaml"))


def problems(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "merge.yaml"
    file.write_text(textwrap.dedent(text))
    with pytest.raises(ConfigError, match=r"merge\.yaml") as caught:
        load_document(file)
    return [line.removeprefix(f"{tmp_path}/merge.yaml:") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_valid(path: Path) -> None:
    document = load_document(path)
    assert document.name == path.stem
    assert document.merge_method in MERGERS


def test_there_is_an_example_of_every_built_in_method() -> None:
    assert {load_document(path).merge_method for path in EXAMPLES} == {"linear", "slerp", "task_arithmetic", "ties"}


MERGEKIT = """
slices:
  - sources:
      - model: psmathur/orca_mini_v3_13b
        layer_range: [0, 40]
      - model: garage-bAInd/Platypus2-13B
        layer_range: [0, 40]
merge_method: slerp
base_model: psmathur/orca_mini_v3_13b
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float16
---
models:
  - model: psmathur/orca_mini_v3_13b
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: garage-bAInd/Platypus2-13B
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: WizardLM/WizardMath-13B-V1.0
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: TheBloke/Llama-2-13B-fp16
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""


@pytest.mark.parametrize("text", MERGEKIT.split("---"))
def test_documents_written_for_mergekit_are_read_unchanged(tmp_path: Path, text: str) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text(text)
    document = load_document(file)
    assert document.dtype == "float16"
    assert document.references()[0] == document.base_model


def test_every_problem_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """\
        merge_methd: ties
        merge_method: ties
        base_model: base
        tokenizer_source: bas
        models:
          - model: a
            parameters:
              density: [0.5, -1, 1]
              weight:
                - filter: mlp
                  value: heavy
                - valu: 3
          - model: c
            parameters: {wieght: 1, density: true, lambda: 2}
        parameters:
          normalize: 2
        dtype: bfloat17
        """,
    )
    wanted = [
        ("1", "merge_methd: unknown key; did you mean 'merge_method'?"),
        ("4", "tokenizer_source: 'bas' is neither base nor union nor a model of this document; did you mean 'base'?"),
        ("8", "models.0.parameters.density.1: -1: must be greater than or equal to 0"),
        ("11", "models.0.parameters.weight.0.value: 'heavy': wanted a valid number"),
        ("12", "models.0.parameters.weight.1.valu: unknown key; did you mean 'value'?"),
        ("14", "models.1.parameters.wieght: unknown parameter; did you mean 'weight'?"),
        ("14", "models.1.parameters.density: True: wanted a valid number"),
        ("14", "models.1.parameters.lambda: is the same for all models"),
        ("16", "parameters.normalize: 2: wanted a valid boolean"),
        ("17", "dtype: 'bfloat17' is not"),
    ]
    for line, text in wanted:
        assert any(problem.startswith(f"{line} {text}") for problem in found), (line, text, found)


PAIR = "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: tise\n" + PAIR, "1 merge_method: unknown merge method 'tise'; did you mean 'ties'?"),
        ("merge_method: linear\n", "models: is missing: list the models to merge"),
        ("merge_method: linear\nmodels: []\n", "2 models: []: "),
        ("merge_method: ties\n" + PAIR, "base_model: is missing: ties needs one"),
        ("merge_method: ties\nbase_model: a\nmodels: [{model: a}]\n", "3 models: has no model besides the base"),
        (
            "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}, {model: c}]\n",
            "3 models: has 3; slerp takes 2",
        ),
        (
            "merge_method: slerp\nbase_model: a\nmodels: [{model: b}, {model: c}]\n",
            "3 models: has 3 with the base model; slerp takes 2",
        ),
        ("merge_method: linear\nmodels: [{model: a}, {model: a}]\n", "2 models.1.model: 'a' is listed twice"),
        ("merge_method: linear\nmodels: [{modl: a}]\n", "2 models.0.modl: unknown key; did you mean 'model'?"),
        (
            "merge_method: linear\n" + PAIR + "slices:\n- sources: [{model: a, layer_range: [0, 2]}]\n",
            "3 slices: stands beside models",
        ),
        (
            "merge_method: linear\nslices:\n- sources:\n  - {model: a, layer_range: [0, 2]}\n"
            "  - {model: b, layer_range: [0, 3]}\n",
            "5 slices.0.sources.1.layer_range: [0, 3] has 3 blocks; the first source has 2",
        ),
        (
            "merge_method: linear\nslices:\n- sources: [{model: a, layer_range: [2, 2]}]\n",
            "3 slices.0.sources.0.layer_range: [2, 2] is no range",
        ),
        (
            "merge_method: ties\nbase_model: a\nslices:\n- sources: [{model: b, layer_range: [0, 2]}]\n",
            "4 slices.0.sources: lacks the base model 'a'",
        ),
        (
            "merge_method: linear\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n  residual_weight: 1\n",
            "4 slices.0.residual_weight: unknown key",
        ),
        ("merge_method: linear\ntokenizer_source: base\n" + PAIR, "2 tokenizer_source: base: the document has no"),
        ("merge_method: linear\n" + PAIR + "parameters: {normalize: []}\n", "3 parameters.normalize: is an empty list"),
        (
            "merge_method: linear\n" + PAIR + "parameters: {weight: [{value: 1}, {filter: mlp, value: 2}]}\n",
            "3 parameters.weight: an entry without filter takes every tensor: put it last",
        ),
        (
            "merge_method: linear\n" + PAIR + "parameters: {weight: [{filter: mlp, value: 2}, 3]}\n",
            "3 parameters.weight.1: 3 stands beside filter entries",
        ),
        (
            "merge_method: linear\n" + PAIR + "parameters: {weight: [{filter: mlp}]}\n",
            "3 parameters.weight.0: has no value",
        ),
        (
            "merge_method: linear\n" + PAIR + "parameters: {weight: {filter: 3, value: 1}}\n",
            "3 parameters.weight.filter: 3 is no text",
        ),
        (
            "merge_method: linear\n" + PAIR + "parameters: {weight: {value: {value: 1}}}\n",
            "3 parameters.weight.value: is a section",
        ),
        ("merge_method: linear\n" + PAIR + "parameters: {int8_mask: 3}\n", "3 parameters.int8_mask: 3: wanted a valid"),
        ("merge_method: linear\n" + PAIR + "parameters: {weight: .inf}\n", "3 parameters.weight: "),
        ("merge_method: slerp\nmerge_method: ties\n", '2 key "merge_method" is given twice'),
        ("merge_method: [\n", "is not YAML"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str) -> None:
    found = problems(tmp_path, text)
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    ("setting", "depth", "name", "value"),
    [
        (0.3, 0.9, "x", 0.3),
        ([0, 1], 0.25, "x", 0.25),
        ([0, 1, 0], 0.5, "x", 1.0),
        ([0, 1, 0], 0.75, "x", 0.5),
        ([2], 0.7, "x", 2.0),
        ([0, 1], 1.0, "x", 1.0),
        ([True, False], 0.4, "x", True),
        ([True, False], 1.0, "x", False),
        ({"filter": "mlp", "value": 3}, 0.0, "a.mlp.b", 3),
        ({"filter": "mlp", "value": 3}, 0.0, "a.attn.b", None),
        ([{"filter": "mlp", "value": [0, 4]}, {"value": 1}], 0.5, "a.mlp.b", 2.0),
        ([{"filter": "mlp", "value": 3}, {"filter": "*", "value": 1}], 0.5, "a.attn.b", 1),
    ],
)
def test_settings_are_evaluated_by_depth_and_name(setting: object, depth: float, name: str, value: object) -> None:
    assert evaluate(setting, depth, name) == value


class TestParams:
    def test_each_method_makes_a_document(self) -> None:
        for method in ("linear", "task_arithmetic", "ties"):
            document = MergeParams(method=method, models=("a", "b", "c")).to_document()
            assert document.merge_method == method
            assert document.base_model == (None if method == "linear" else "base")
        document = MergeParams(method="slerp", models=("a", "b"), slerp={"t": 0.25}).to_document()
        assert document.base_model == "a"
        assert document.parameters == {"t": 0.25}
        section = {"lambda": 0.4, "density": 0.2}
        assert MergeParams(method="ties", models=("a",), ties=section).to_document().parameters == {
            "weight": 1.0,
            "density": 0.2,
            "normalize": True,
            "rescale": False,
            "lambda": 0.4,
        }

    def test_documents_are_named_by_their_files(self) -> None:
        params = MergeParams(models=("a", "b"), documents=tuple(EXAMPLES))
        assert list(params.all_documents()) == ["main", "slerp", "soup", "task_arithmetic", "ties"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("method: tise\nmodels: [a]\n", "1 method: unknown merge method 'tise'; did you mean 'ties'?"),
            ("method: slerp\nmodels: [a, b, c]\n", "2 models: has 3; slerp takes 2"),
            ("models: [a, a]\n", "1 models.1: 'a' is listed twice"),
            ("models: [base]\nbase: base\n", "1 models: has no model besides the base"),
            ("models: []\n", "1 models: []: "),
            ("models: [a]\nties: {density: 2}\n", "2 ties.density: 2: must be less than or equal to 1"),
            ("models: [a]\nteis: {density: 1}\n", "2 teis: unknown key; did you mean 'ties'?"),
            ("models: [a]\ndocuments: [x/a.yaml, y/a.yaml]\n", "2 documents.1: a second document called 'a'"),
            ("models: [a]\ndocuments: [main.yaml]\n", "2 documents.0: is called 'main'"),
        ],
    )
    def test_problems_have_the_keys_of_the_section(self, tmp_path: Path, text: str, message: str) -> None:
        from mango.config import load

        (tmp_path / "params.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"params\.yaml") as caught:
            load(MergeParams, tmp_path / "params.yaml", environ={})
        assert any(message in line for line in str(caught.value).splitlines()), caught.value


def test_a_mapping_is_validated_as_a_file_is() -> None:
    with pytest.raises(ConfigError, match="merge document merge_method: unknown merge method 'x'"):
        parse_mapping({"merge_method": "x", "models": [{"model": "a"}]})
