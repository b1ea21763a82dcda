"""The gate of the block table: what must hold before blocks are merged or fused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mango.errors import GateError
from mango.gates.checks import Check, run_checks
from mango.gates.params import BlocksGateParams, GateParams
from mango.gates.report import GateReport, write_report

if TYPE_CHECKING:
    import pandas as pd

_NEEDED = ("model", "index", "block_class", "width", "num_parameters", "norm", "max_abs", "num_nonfinite", "sha256")
_SHAPES = ("width", "num_heads", "num_kv_heads", "head_dim")
_NORMS = ("norm", "attention_norm", "mlp_norm", "max_abs", "mean", "std")
_WHERE = ("model", "index")


def run_blocks_gate(table: Path, gate_params: GateParams, out: Path) -> GateReport:
    """Check the table of extracted blocks and write ``blocks.json`` and ``blocks.html``.

    Args:
        table: the parquet file that extraction wrote, one row a block.
        gate_params: the bounds; its ``blocks`` part applies.
        out: folder of the two files.

    Returns:
        The report; it does not raise by itself when a check fails.

    Raises:
        GateError: the table is missing or is no parquet file.
        CheckpointError: the report cannot be written.
    """
    blocks = _read(table)
    findings = run_checks("blocks", blocks, _checks(blocks, gate_params.blocks))
    bounds = gate_params.blocks.model_dump(mode="json")
    return write_report("blocks", str(table), {"blocks": len(blocks)}, findings, bounds, out)


def _read(table: Path) -> pd.DataFrame:
    """Return the rows, each with the number of blocks of its model and the shapes that occur in it."""
    import pandas as pd
    import pyarrow as pa

    try:
        blocks = pd.read_parquet(table)
    except FileNotFoundError:
        raise GateError(f"{table} is missing; run the stage extract-blocks first") from None
    except (pa.ArrowException, OSError) as error:
        raise GateError(f"{table}: this is no readable parquet file ({error}); run extract-blocks again") from error
    if {"model", "index"} <= set(blocks.columns):
        blocks["last_index"] = blocks.groupby("model")["index"].transform("size") - 1
    for name in _SHAPES:
        if {"model", name} <= set(blocks.columns):
            blocks[f"{name}_values"] = blocks.groupby("model")[name].transform("nunique")
    return blocks


def _checks(blocks: pd.DataFrame, bounds: BlocksGateParams) -> list[Check]:
    checks = [
        Check(
            "The table has all its columns",
            "columns are missing",
            "ExpectTableColumnsToMatchSet",
            {"column_set": list(_NEEDED), "exact_match": False},
        ),
        Check("There are blocks", "the table is empty", "ExpectTableRowCountToBeBetween", {"min_value": 1}),
        *(
            Check(
                f"Every block has a {name}",
                f"{name} has no value",
                "ExpectColumnValuesToNotBeNull",
                {"column": name},
                _WHERE,
            )
            for name in _NEEDED
        ),
        Check(
            "Every block of a model stands in one row",
            "the same model and index stand in several rows",
            "ExpectCompoundColumnsToBeUnique",
            {"column_list": ["model", "index"]},
            _WHERE,
        ),
        Check(
            "The blocks of a model are numbered without a gap",
            "the index is beyond the model's number of blocks, so one before it is missing",
            "ExpectColumnPairValuesAToBeGreaterThanB",
            {"column_A": "last_index", "column_B": "index", "or_equal": True},
            (*_WHERE, "last_index"),
        ),
        Check(
            "Every weight is a finite number",
            "the block holds weights that are infinite or no number",
            "ExpectColumnValuesToBeBetween",
            {"column": "num_nonfinite", "min_value": 0, "max_value": 0},
            (*_WHERE, "num_nonfinite"),
        ),
        Check(
            f"No weight is above {bounds.max_abs_weight:g} in size",
            "the block holds a larger weight",
            "ExpectColumnValuesToBeBetween",
            {"column": "max_abs", "min_value": 0, "max_value": bounds.max_abs_weight},
            (*_WHERE, "max_abs"),
        ),
        Check(
            "No block is all zeros",
            "the norm of the block's weights is 0",
            "ExpectColumnValuesToBeBetween",
            {"column": "norm", "min_value": 0, "strict_min": True},
            (*_WHERE, "norm"),
        ),
        Check(
            "Every block has parameters",
            "the block has none",
            "ExpectColumnValuesToBeBetween",
            {"column": "num_parameters", "min_value": 1},
            (*_WHERE, "num_parameters"),
        ),
        Check(
            "Every block has its SHA-256",
            "this is no SHA-256",
            "ExpectColumnValuesToMatchRegex",
            {"column": "sha256", "regex": "^[0-9a-f]{64}$"},
            (*_WHERE, "sha256"),
        ),
    ]
    largest = 1.7e308  # below infinity
    checks += [
        Check(
            f"{name} is finite",
            f"{name} is infinite",
            "ExpectColumnValuesToBeBetween",
            {"column": name, "min_value": -largest, "max_value": largest},
            (*_WHERE, name),
        )
        for name in _NORMS
        if name in blocks.columns and blocks[name].notna().any()
    ]
    checks += [
        Check(
            f"All blocks of a model agree in {name}",
            f"the model's blocks differ in {name}",
            "ExpectColumnValuesToBeBetween",
            {"column": f"{name}_values", "max_value": 1},
            (*_WHERE, name),
        )
        for name in _SHAPES
        if name in blocks.columns
    ]
    return checks
