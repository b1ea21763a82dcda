"""Scores models on tasks of lm-eval, one model after another on the same examples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mango.errors import EvaluationError
from mango.evaluation.harness.surroundings import contained
from mango.evaluation.harness.tasks import Loaded, harness_version, load_tasks

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from mango.evaluation.params import LmEvalParams


@dataclass(frozen=True)
class Score:
    """One metric of one task.

    Args:
        task: the task or group.
        metric: the metric.
        filter: what the model's answers went through first; ``none`` where nothing did.
        value: its value; None where it is no finite number.
        stderr: its standard error as lm-eval gives it; None where it gives none.
        higher_is_better: None where the task does not say.
        samples: examples; of a group, those of its tasks.
        num_fewshot: worked examples in each prompt; of a group None where its tasks differ.
        group: whether it is made of the scores of several tasks.
    """

    task: str
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    higher_is_better: bool | None
    samples: int
    num_fewshot: int | None
    group: bool = False

    @property
    def name(self) -> str:
        """The metric, with the filter where there is one."""
        return self.metric if self.filter == "none" else f"{self.metric} ({self.filter})"

    @property
    def shown(self) -> str:
        """The value with its standard error, for a table."""
        if self.value is None:
            return "-"
        return f"{self.value:.3f}" + ("" if self.stderr is None else f" \N{PLUS-MINUS SIGN} {self.stderr:.3f}")


@dataclass(frozen=True)
class Scores:
    """What one model scores.

    Args:
        scores: of every task and metric.
        truncated: how often a prompt was longer than the model may see, and lost its beginning.
    """

    scores: tuple[Score, ...]
    truncated: int

    def lines(self) -> Iterator[str]:
        """Yield the scores, and how often a prompt lost its beginning, as lines for a person.

        Yields:
            each line.
        """
        shown = [f"{score.task} {score.name} {score.shown}" for score in self.scores]
        yield ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
        if self.truncated:
            yield f"{self.truncated} times a prompt was too long for the model and lost its beginning"


class Harness:
    """Tasks of lm-eval, loaded once and run on one model after another.

    Args:
        params: which tasks, and how they are run.
        seed: of worked examples, of data that tasks make, and of sampling.
        tokenizer: folder of the tokenizer by which tasks that make their own data measure its length.

    Raises:
        EvaluationError: see :func:`mango.evaluation.harness.load_tasks`.
    """

    def __init__(self, params: LmEvalParams, *, seed: int, tokenizer: Path) -> None:
        self.params = params
        self.seed = seed
        self.version = harness_version()
        with contained(seed):
            self._loaded: Loaded = load_tasks(params.tasks, {"tokenizer": str(tokenizer), **params.metadata})

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None
    ) -> Scores:
        """Score a model.

        Args:
            model: a causal language model, ready to be run; a fused one is run as it routes.
            tokenizer: its tokenizer.
            max_length: tokens that it may see at once; by default that of the parameters, else as many as it takes.

        Returns:
            Its scores. Generators of the process are left as they were.

        Raises:
            EvaluationError: the tokenizer has no token that begins or ends a text, or a task fails on the model.
        """
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM

        if tokenizer.eos_token_id is None:
            raise EvaluationError(
                f"{tokenizer.name_or_path}: its tokenizer has no end-of-text token, by which lm-eval begins texts and "
                "ends answers: set eos_token in tokenizer_config.json"
            )
        longest = max_length or self.params.max_length
        with contained(self.seed) as heard:
            self._set_examples()
            subject = HFLM(
                pretrained=model,
                backend="causal",
                tokenizer=tokenizer,
                batch_size=self.params.batch_size,
                max_length=None if longest is None else min(longest, context_of(model.config) or longest),
            )
            try:
                found = evaluate(
                    subject,
                    {"tasks": self._loaded.tasks, "groups": self._loaded.groups, "group_map": {}},
                    limit=self.params.limit,
                    bootstrap_iters=self.params.bootstrap,
                    log_samples=False,
                )
            except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
                line = f"{type(error).__name__}: {error}".splitlines()[0]
                raise EvaluationError(f"lm-eval on {model.name_or_path or 'the model'}: {line}") from error
        return Scores(tuple(_scores(found)), heard.truncated)

    def _set_examples(self) -> None:
        """Give every task its number of worked examples, and the same ones for each model."""
        wanted = self.params.num_fewshot
        for task in self._loaded.tasks.values():
            own = task.get_config("num_fewshot")
            if own is None or (wanted is not None and own != 0):  # a task that says 0 cannot have any
                task.set_config(key="num_fewshot", value=wanted or 0)
            task.set_fewshot_seed(seed=self.seed)


def context_of(config: PretrainedConfig) -> int | None:
    """Return how many tokens a model takes at once, as far as its configuration says."""
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        length = getattr(config, name, None)
        if isinstance(length, int) and 0 < length < 2**31:
            return length
    return None


def _scores(found: Mapping[str, Any]) -> list[Score]:
    """Return the scores in lm-eval's result: groups first, each task's in the order of its metrics."""
    groups = set(found.get("groups", {}))
    names = sorted(found["results"], key=lambda name: name not in groups)
    scores: list[Score] = []
    for task in names:
        values = found["results"][task]
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            if metric.isdigit() and value == -1:  # how the tasks of RULER say that a length was not asked for
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            scores.append(
                Score(
                    task=task,
                    metric=metric,
                    filter=kind,
                    value=_finite(value),
                    stderr=_finite(error),
                    higher_is_better=found["higher_is_better"].get(task, {}).get(metric),
                    samples=int(values.get("sample_len") or values.get("sample_count") or 0),
                    num_fewshot=_count(found["n-shot"].get(task)),
                    group=task in groups,
                )
            )
    if not scores:
        raise EvaluationError(f"lm-eval gave no score for {', '.join(names)}")
    return scores


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) else None
