"""Who may be trusted with what: signatures, trust tiers, checks of what a file asks for, the sandbox."""

from __future__ import annotations

from mango.security.policy import (
    Place,
    Policy,
    Rule,
    Tier,
    current_policy,
    enforced,
    may_depend_on_bytes,
    tier_of,
    user_policy,
)
from mango.security.sandbox import Limits, Outcome, run

__all__ = [
    "Limits",
    "Outcome",
    "Place",
    "Policy",
    "Rule",
    "Tier",
    "current_policy",
    "enforced",
    "may_depend_on_bytes",
    "run",
    "tier_of",
    "user_policy",
]
