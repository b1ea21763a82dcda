from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mango.errors import GateError
from mango.gates import GateParams, GateReport, run_blocks_gate


@pytest.fixture
def blocks() -> pd.DataFrame:
    """Two models of different width and number of blocks; the second has no attention."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "index": index,
                "block_class": "Block",
                "width": width,
                "num_heads": 4,
                "num_parameters": 1000,
                "norm": 12.5,
                "attention_norm": norm,
                "max_abs": 0.5,
                "num_nonfinite": 0,
                "sha256": f"{index:064x}",
            }
            for model, width, count, norm in (("base", 64, 3, 8.0), ("other", 48, 2, None))
            for index in range(count)
        ]
    )


def gate(blocks: pd.DataFrame, folder: Path, **bounds: Any) -> GateReport:
    blocks.to_parquet(folder / "blocks.parquet")
    return run_blocks_gate(folder / "blocks.parquet", GateParams.model_validate({"blocks": bounds}), folder / "gates")


def failed(report: GateReport) -> dict[str, list[tuple[Any, Any]]]:
    return {finding.rule: [(row["model"], row["index"]) for row in finding.rows] for finding in report.failures}


def test_a_good_table_passes(blocks: pd.DataFrame, tmp_path: Path) -> None:
    report = gate(blocks, tmp_path)
    assert report.failures == ()
    assert report.num_rows == {"blocks": 5}
    assert {path.name for path in (tmp_path / "gates").iterdir()} == {"blocks.json", "blocks.html"}


def test_damaged_blocks_are_named(blocks: pd.DataFrame, tmp_path: Path) -> None:
    blocks["norm"] = blocks["norm"].astype(float)
    blocks.loc[0, "num_nonfinite"] = 3
    blocks.loc[1, "norm"] = float("inf")
    blocks.loc[2, "norm"] = 0.0
    blocks.loc[3, "max_abs"] = 2e4
    blocks.loc[4, "sha256"] = "short"
    assert failed(gate(blocks, tmp_path)) == {
        "Every weight is a finite number": [("base", 0)],
        "norm is finite": [("base", 1)],
        "No block is all zeros": [("base", 2)],
        "No weight is above 10000 in size": [("other", 0)],
        "Every block has its SHA-256": [("other", 1)],
    }
    assert "No weight is above 10000 in size" not in failed(gate(blocks, tmp_path, max_abs_weight=1e5))


def test_repeated_and_missing_blocks_are_named(blocks: pd.DataFrame, tmp_path: Path) -> None:
    twice = pd.concat([blocks, blocks.iloc[[3]]], ignore_index=True)
    assert failed(gate(twice, tmp_path)) == {"Every block of a model stands in one row": [("other", 0), ("other", 0)]}
    gap = blocks.drop(index=1)
    assert failed(gate(gap, tmp_path)) == {"The blocks of a model are numbered without a gap": [("base", 2)]}


def test_shapes_must_agree_within_a_model_only(blocks: pd.DataFrame, tmp_path: Path) -> None:
    blocks.loc[1, "width"] = 65
    assert failed(gate(blocks, tmp_path)) == {
        "All blocks of a model agree in width": [("base", 0), ("base", 1), ("base", 2)]
    }


def test_a_missing_norm_is_named(blocks: pd.DataFrame, tmp_path: Path) -> None:
    blocks.loc[4, "norm"] = None
    assert failed(gate(blocks, tmp_path)) == {"Every block has a norm": [("other", 1)]}


def test_an_empty_table_and_a_missing_column_fail(blocks: pd.DataFrame, tmp_path: Path) -> None:
    assert "There are blocks" in failed(gate(blocks.iloc[:0], tmp_path))
    report = gate(blocks.drop(columns=["sha256"]), tmp_path)
    assert report.failures[0].why == "columns are missing: sha256"


def test_what_is_no_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"blocks\.parquet is missing; run the stage extract-blocks first"):
        run_blocks_gate(tmp_path / "blocks.parquet", GateParams(), tmp_path)
    (tmp_path / "blocks.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(GateError, match="this is no readable parquet file"):
        run_blocks_gate(tmp_path / "blocks.parquet", GateParams(), tmp_path)
