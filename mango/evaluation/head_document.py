"""The document of an evaluation of a fused model that is no causal language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mango.evaluation.budget import dominance
from mango.evaluation.headline import headline
from mango.evaluation.retention import retention
from mango.evaluation.routing import positions


def head_document(found: Mapping[str, Any], corpus_hash: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of ``reports/evaluation.json``.

    Args:
        found: from :func:`mango.evaluation.heads.evaluate_head`.
        corpus_hash: SHA-256 of the corpus.
        record: seed, training curve, parameters and provenance.
    """
    soft, hard, texts = found["soft"], found["hard"], found["examples"]
    kept = retention(found["systems"], hard, found["sources"])
    return {
        "schema_version": 1,
        "units": {
            "pure": found["units"],
            "switching": found["units"],
            "cost": "tokens processed by experts, in units of one expert",
        },
        "domains": found["domains"],
        "systems": found["systems"],
        "headline": headline(found["systems"], kept),
        "routing": {
            "positions": positions(soft) or alone(found["domains"]),
            "processed": {domain: {e: round(n) for e, n in hard[domain].by_expert().items()} for domain in texts},
            "sample": [],
        },
        "retention": kept,
        "budget": dominance(found["systems"]),
        "corpus": {
            "domains": {
                domain: {
                    "test_bytes": max(1, int(own.units.sum())),
                    "test_tokens": int(next(iter(own.inputs.values())).numel()),
                }
                for domain, own in texts.items()
            },
            "sha256": corpus_hash,
        },
        **record,
    }


def alone(domains: list[str]) -> list[dict[str, Any]]:
    """Return the routing of a model whose only expert is its trunk.

    Args:
        domains: names of the domains.
    """
    only = {domain: {"utilisation": [1.0], "entropy_nats": 0.0} for domain in domains}
    return [{"position": 0, "experts": ["anchor"], "by_domain": only}]
