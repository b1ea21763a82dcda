"""Gates: what a corpus, a block table and an evaluation must fulfil before the pipeline goes on."""

from __future__ import annotations

from mango.gates.blocks import run_blocks_gate
from mango.gates.checks import Check, Finding, run_checks
from mango.gates.corpus import run_corpus_gate
from mango.gates.metrics import run_metrics_gate
from mango.gates.params import BlocksGateParams, CorpusGateParams, GateParams, MetricsGateParams
from mango.gates.report import GateReport, write_report

__all__ = [
    "BlocksGateParams",
    "Check",
    "CorpusGateParams",
    "Finding",
    "GateParams",
    "GateReport",
    "MetricsGateParams",
    "run_blocks_gate",
    "run_checks",
    "run_corpus_gate",
    "run_metrics_gate",
    "write_report",
]
