"""The built-in merge methods: importing this package registers them."""

from __future__ import annotations

from mango.merging.methods.linear import LinearParams, linear
from mango.merging.methods.slerp import SlerpParams, slerp
from mango.merging.methods.task_arithmetic import TaskArithmeticParams, task_arithmetic
from mango.merging.methods.ties import TiesParams, ties

__all__ = [
    "LinearParams",
    "SlerpParams",
    "TaskArithmeticParams",
    "TiesParams",
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
]
