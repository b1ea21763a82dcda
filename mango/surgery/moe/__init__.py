"""Mixtures of experts, assembled out of dense models of one architecture."""

from __future__ import annotations

from mango.surgery.moe.assembly import MoeReport, assemble
from mango.surgery.moe.document import MoeDocument, load_moe_document
from mango.surgery.moe.plan import MoePlan, plan_moe

__all__ = ["MoeDocument", "MoePlan", "MoeReport", "assemble", "load_moe_document", "plan_moe"]
