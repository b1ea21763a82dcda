"""Tasks of the lm-evaluation-harness on a tiny fused model, against its own losses."""

from __future__ import annotations

import json
import logging
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mango.corpus import token_losses
from mango.errors import EvaluationError
from mango.evaluation import LmEvalParams
from mango.evaluation.harness import Harness, Score, harness_version, load_tasks
from mango.fusion import MolForCausalLM
from tests.training.toys import build, make_job, make_store, make_tokenizer, save_corpus, save_sources, stir

EXAMPLES = Path(__file__).parents[2] / "examples" / "lm_eval"

WRITTEN = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
"""
KINDS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: " "
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    "likelihood": """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: " {{answer}}"
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
""",
    "writing": """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["#"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}
TEXTS = ["12 345 67 8", "ab cde fg h ij ab cde", "90", "8 8 8 ab ab 12 345", "ij h fg"]
CHOICES = [
    {"context": "12 345", "choices": ["67 8", "ab cde fg", "h"], "label": 0},
    {"context": "ab cde fg h ij ab cde", "choices": ["fg", "90", "12 345 67 8"], "label": 0},
    {"context": "8 90", "choices": ["12", "ij ij", "a"], "label": 2},
]
WRITING = ["12 345 67 8 90 12 345", "ab", "ab cde fg h ij"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("harness")


@pytest.fixture(scope="module")
def fused(root: Path) -> MolForCausalLM:
    store = make_store(save_sources(root), root / "blocks")
    router = {"type": "topk", "topk": {"window": 2, "catch_up": 2}}
    job = make_job(save_corpus(root / "corpus"), experts=("sister", "stranger"), router=router)
    return stir(build(job, store)).eval()


@pytest.fixture(scope="module")
def home(root: Path) -> Path:
    """The folder of the tokenizer."""
    make_tokenizer().save_pretrained(root / "tokenizer")
    return root / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer(home: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(home)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a user's task and its data, and give the path of the task."""

    def written(kind: str, rows: list[dict[str, Any]], name: str = "own") -> Path:
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = tmp_path / f"{name}.yaml"
        task.write_text(WRITTEN.format(name=name, data=data) + KINDS[kind])
        return task

    return written


def score(
    model: MolForCausalLM, task: Path, home: Path, tokenizer: PreTrainedTokenizerFast, **params: Any
) -> dict[str, Score]:
    harness = Harness(LmEvalParams.model_validate({"tasks": [str(task)], **params}), seed=0, tokenizer=home)
    return {found.metric: found for found in harness.run(model, tokenizer).scores}


def nats(model: MolForCausalLM, ids: list[int]) -> torch.Tensor:
    """Return the loss of each token after the first, of one row that nothing pads."""
    return token_losses(model, torch.tensor([ids]), batch_size=1)[0].double()


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_rolling_likelihood_is_our_own_loss(
    fused: MolForCausalLM, write: Callable[..., Path], home: Path, tokenizer: PreTrainedTokenizerFast, mode: str,
    batch_size: int,
) -> None:  # fmt: skip
    fused.set_routing(mode)
    found = score(fused, write("rolling", [{"text": text} for text in TEXTS]), home, tokenizer, batch_size=batch_size)[
        "bits_per_byte"
    ]
    bits = sum(float(nats(fused, [0, *tokenizer.encode(text)]).sum()) for text in TEXTS) / math.log(2)
    # float32 sums in another order
    assert found.value == pytest.approx(bits / sum(len(text) for text in TEXTS), rel=1e-5)
    assert found == Score("own", "bits_per_byte", "none", found.value, None, False, 5, 0)


def test_text_longer_than_the_model_sees_is_read_in_windows(
    fused: MolForCausalLM, write: Callable[..., Path], home: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    fused.set_routing("hard")
    text = " ".join(TEXTS)
    found = score(fused, write("rolling", [{"text": text}]), home, tokenizer, max_length=16)["bits_per_byte"]
    ids = [0, *tokenizer.encode(text)]
    total = 0.0
    for start in range(1, len(ids), 16):  # windows of 16, the last one filled from the left
        stop = min(start + 16, len(ids))
        new = stop - start
        total += float(nats(fused, ids[stop - 17 : stop] if stop > 17 else ids[:stop])[-new:].sum())
    assert found.value == pytest.approx(total / math.log(2) / len(text), rel=1e-5)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_choices_are_ranked_by_our_own_losses(
    fused: MolForCausalLM, write: Callable[..., Path], home: Path, tokenizer: PreTrainedTokenizerFast, mode: str
) -> None:
    fused.set_routing(mode)
    right = []
    for row in CHOICES:
        context = tokenizer.encode(row["context"])
        losses = []
        for choice in row["choices"]:
            ids = tokenizer.encode(f"{row['context']} {choice}")
            losses.append(float(nats(fused, ids)[len(context) - 1 :].sum()))
        right.append(float(np.argmin(losses) == row["label"]))
    found = score(fused, write("choice", CHOICES), home, tokenizer, batch_size=4)["acc"]
    share = sum(right) / 3
    assert 0 < share < 1  # else a wrong ranking might go unseen
    assert found.value == pytest.approx(share)
    assert found.stderr == pytest.approx(math.sqrt(share * (1 - share) / 2))
    assert found.higher_is_better


def test_errors_without_a_formula_are_drawn(
    fused: MolForCausalLM, write: Callable[..., Path], home: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    fused.set_routing("hard")
    rows = [{"context": text, "answer": answer} for text, answer in zip(WRITING, ("67", "h ij", "8 8"), strict=True)]
    sums = []
    for row in rows:
        ids = tokenizer.encode(f"{row['context']} {row['answer']}")
        sums.append(float(nats(fused, ids)[len(tokenizer.encode(row["context"])) - 1 :].sum()))
    found = score(fused, write("likelihood", rows), home, tokenizer, bootstrap=200)["perplexity"]
    assert found.value == pytest.approx(math.exp(np.mean(sums)), rel=1e-5)
    chance = random.Random(0)
    drawn = [math.exp(np.mean(chance.choices(sums, k=3))) for _ in range(200)]
    assert found.stderr == pytest.approx(np.std(drawn, ddof=1), rel=1e-4)
    assert score(fused, write("likelihood", rows), home, tokenizer, bootstrap=0)["perplexity"].stderr is None


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_what_is_written_in_a_padded_batch_is_what_is_written_alone(
    fused: MolForCausalLM, write: Callable[..., Path], home: Path, tokenizer: PreTrainedTokenizerFast, mode: str
) -> None:
    fused.set_routing(mode)
    rows = []
    for context in WRITING:
        ids = torch.tensor([tokenizer.encode(context)])
        with torch.no_grad():
            made = fused.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False, pad_token_id=0)
        answer = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).split("#")[0]
        assert answer
        rows.append({"context": context, "answer": answer})
    rows[1]["answer"] += "?"
    found = score(fused, write("writing", rows), home, tokenizer, batch_size=3)["exact_match"]
    assert found.value == pytest.approx(2 / 3)


def test_worked_examples_are_put_before_each_prompt_and_are_the_same_for_each_model(
    fused: MolForCausalLM, write: Callable[..., Path], home: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    fused.set_routing("soft")
    task = write("choice", CHOICES)
    task.write_text(task.read_text() + "fewshot_split: test\n")
    params = LmEvalParams.model_validate({"tasks": [str(task)], "num_fewshot": 2, "limit": 2})
    harness = Harness(params, seed=5, tokenizer=home)
    seen: list[list[tuple[int, ...]]] = []

    def listen(_: Any, args: Any, kwargs: Any) -> None:
        seen[-1] += [tuple(row) for row in args[0].tolist()]

    with fused.register_forward_pre_hook(listen, with_kwargs=True):
        for _ in range(2):
            seen.append([])
            found = harness.run(fused, tokenizer).scores[0]
    assert seen[0] == seen[1]
    assert (found.num_fewshot, found.samples) == (2, 2)
    assert min(len(row) for row in seen[0]) > max(len(row["context"]) for row in CHOICES)


def test_a_run_leaves_no_trace(
    fused: MolForCausalLM, write: Callable[..., Path], home: Path, tokenizer: PreTrainedTokenizerFast,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    log = logging.getLogger("lm_eval")
    before = log.level, log.propagate, list(log.handlers)
    weights = {name: value.clone() for name, value in fused.state_dict().items()}
    fused.set_routing("soft")
    score(fused, write("rolling", [{"text": TEXTS[0]}]), home, tokenizer)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert (log.level, log.propagate, list(log.handlers)) == before
    assert all(torch.equal(value, weights[name]) for name, value in fused.state_dict().items())
    said = capfd.readouterr()
    assert said.out == ""
    assert "it/s" not in said.err


def test_a_tokenizer_that_ends_no_text_is_refused(
    fused: MolForCausalLM, write: Callable[..., Path], home: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(EvaluationError, match="no end-of-text token"):
        score(fused, write("rolling", [{"text": TEXTS[0]}]), home, bare)


def test_the_examples_run(fused: MolForCausalLM, home: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    params = LmEvalParams.model_validate({"tasks": [str(EXAMPLES)], "limit": 4})
    harness = Harness(params, seed=0, tokenizer=home)
    fused.set_routing("hard")
    found = {(one.task, one.metric): one for one in harness.run(fused, tokenizer).scores}
    assert set(found) == {
        ("corpus_continuation", "acc"), ("corpus_continuation", "acc_norm"), ("corpus_next_word", "exact_match"),
        ("corpus_perplexity", "bits_per_byte"), ("corpus_perplexity", "byte_perplexity"),
    }  # fmt: skip
    assert all(one.samples == 4 and one.value is not None for one in found.values())
    assert found["corpus_perplexity", "bits_per_byte"].value == pytest.approx(
        math.log2(found["corpus_perplexity", "byte_perplexity"].value or 0.0)
    )
    # The task's own examples: each right answer is how its document goes on, at each place equally often.
    documents = load_tasks([str(EXAMPLES / "corpus_continuation.yaml")], {}).tasks["corpus_continuation"].eval_docs
    places = [document["label"] for document in documents]
    assert max(map(places.count, range(4))) - min(map(places.count, range(4))) <= 4  # one for each domain
    for document in documents:
        assert document["text"].startswith(document["context"] + document["choices"][document["label"]])
        assert len(document["choices"]) == 4
    assert len({document["domain"] for document in documents.select(range(4))}) == 4


@pytest.mark.slow
def test_a_task_that_lm_eval_ships_runs_without_a_network(
    fused: MolForCausalLM, home: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    told = {"tokenizer": "models/tiny/base", "max_seq_lengths": [1024]}
    params = LmEvalParams.model_validate({"tasks": ["ruler_vt"], "limit": 2, "metadata": told})
    harness = Harness(params, seed=0, tokenizer=home)
    fused.set_routing("hard")
    found = harness.run(fused, tokenizer)
    assert [(one.task, one.metric, one.samples) for one in found.scores] == [("ruler_vt", "1024", 2)]
    assert found.truncated > 0  # the model sees 64 tokens
    with pytest.raises(EvaluationError, match=r"'ruler_tv' is unknown to lm-eval .*; did you mean 'ruler_vt'"):
        load_tasks(["ruler_tv"], told)


BROKEN = {
    "nothing.yaml": ("description: text\n", "is no task file: it needs the key 'task' or 'group'"),
    "own.yml": ("task: own\n", "end in .yaml: rename it"),
    "syntax.yaml": ("task: [own\n", r"syntax.yaml: cannot be loaded \(ParserError"),
    "far.yaml": (
        "task: far\ndataset_path: nobody/has-this-data\ntest_split: test\noutput_type: generate_until\n",
        "could not be fetched",
    ),
    "code.yaml": (
        "task: code\ndataset_path: json\ndataset_kwargs: {data_files: {test: DATA}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{text}}'\nunsafe_code: true\n",
        "runs the code that a model writes",
    ),
    "metric.yaml": (
        "task: metric\ndataset_path: json\ndataset_kwargs: {data_files: {test: DATA}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: rouge, aggregation: mean, higher_is_better: true, hf_evaluate: true}]\n",
        "its metric 'rouge' is code on the Hub",
    ),
    "function.yaml": (
        "task: function\ndataset_path: json\nprocess_docs: !function gone.nowhere\ntest_split: test\n",
        r"task 'function' of .*: cannot be loaded \(ImportError",
    ),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_task_that_cannot_be_run_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, words = BROKEN[name]
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / name).write_text(content.replace("DATA", str(tmp_path / "data.jsonl")))
    with pytest.raises(EvaluationError, match=words) as caught:
        load_tasks([str(tmp_path / name)], {})
    assert "\n" not in str(caught.value)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"gone\.yaml: there is no such task file"):
        load_tasks([str(tmp_path / "gone.yaml")], {})
    with pytest.raises(EvaluationError, match="holds no task file"):
        load_tasks([str(tmp_path)], {})


def test_a_group_is_scored_as_a_whole(
    fused: MolForCausalLM, write: Callable[..., Path], home: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    first = write("choice", CHOICES, "first")
    write("choice", CHOICES[:2], "second")
    (first.parent / "both.yaml").write_text(
        "group: both\ntask: [first, second]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    params = LmEvalParams.model_validate({"tasks": [str(first.parent)]})
    fused.set_routing("soft")
    found = {one.task: one for one in Harness(params, seed=0, tokenizer=home).run(fused, tokenizer).scores}
    assert list(found) == ["both", "first", "second"]
    assert found["both"].group
    assert found["both"].value == pytest.approx((3 * found["first"].value + 2 * found["second"].value) / 5)  # type: ignore[operator]
    assert found["both"].samples == 5


def test_a_missing_package_is_said_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(EvaluationError, match=r"lm-eval is not installed .*pip install 'mango-compose\[lm-eval\]'"):
        harness_version()
