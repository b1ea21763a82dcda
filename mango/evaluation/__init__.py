"""Evaluation: the fused model against everything that a user would pick instead, and the report about it."""

from mango.evaluation.baselines import (
    by_prompt,
    ensemble_posterior,
    ensemble_uniform,
    ensemble_window,
    oracle_segment,
    oracle_sequence,
)
from mango.evaluation.headline import headline
from mango.evaluation.metrics import Estimate, bits_per_byte, gap_closed, nats_per_token
from mango.evaluation.params import EvaluateParams, LmEvalParams
from mango.evaluation.report import write_report
from mango.evaluation.runner import evaluate_all
from mango.evaluation.schema import parse, validate
from mango.evaluation.subjects import Subjects

__all__ = [
    "Estimate",
    "EvaluateParams",
    "LmEvalParams",
    "Subjects",
    "bits_per_byte",
    "by_prompt",
    "ensemble_posterior",
    "ensemble_uniform",
    "ensemble_window",
    "evaluate_all",
    "gap_closed",
    "headline",
    "nats_per_token",
    "oracle_segment",
    "oracle_sequence",
    "parse",
    "validate",
    "write_report",
]
