"""Find the blocks of the source models, write the block store and a table of block statistics, and check the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.run import GATES, Stage, run_stage

if TYPE_CHECKING:
    from mango.blocks import BlockStore

NAME = "extract-blocks"
SECTIONS = ("models", "security", "extract", "gates")
STORE = Path("models/blocks")
TABLE = Path("data/blocks.parquet")


def extract_blocks(stage: Stage) -> Mapping[str, float]:
    """Replace the block store and its table when the gate lets them through.

    Args:
        stage: parameters and run.

    Returns:
        Numbers of models, blocks and parameters.

    Raises:
        GateError: the table breaks a bound; the page says which rows and why, and the older store stays.
    """
    from mango.blocks import extract
    from mango.checkpoints import remove_file, write_file
    from mango.gates import run_blocks_gate

    candidate = GATES / TABLE.name

    def check(store: BlockStore) -> None:
        write_table(store, candidate)
        report = run_blocks_gate(candidate, stage.params.gates, GATES)
        stage.log_gate(report)
        report.raise_if_failed()

    # The table reads every weight, so that hashes cost little: the store can be checked wherever it is taken.
    store = extract(stage.params.models, STORE, stage.params.extract.mode, hashed=True, check=check)
    write_file(TABLE, candidate.read_bytes())
    remove_file(candidate)
    blocks = [block for model in store.manifest.models.values() for block in model.blocks]
    return {
        "num_models": len(store.manifest.models),
        "num_blocks": len(blocks),
        "num_parameters": sum(block.num_parameters for block in blocks),
    }


def refuse_models(path: Path, assignments: Sequence[str]) -> None:
    """Refuse models that cannot be extracted, before the schema of all parameters imports every room.

    Models that assignments change, and files that are malformed, are left to what follows.

    Args:
        path: the parameter file.
        assignments: what the command line sets.

    Raises:
        ArchitectureError: a model has no blocks, is of an unknown type, or its parts do not fit.
        CheckpointError: a model's configuration and weights do not belong together, or a file is malformed.
        UnsafeFileError: a model's configuration selects code, or asks for more than any real model has.
    """
    from mango.blocks import refuse_early
    from mango.cli.model_names import named_models, named_section
    from mango.config import read_document
    from mango.errors import ConfigError
    from mango.security import Policy, enforced

    if any(assignment.startswith(("models", "security")) for assignment in assignments):
        return
    try:
        models = named_models(path)
        policy = named_section(path, "security", Policy) if "security" in read_document(path).data else Policy()
    except (ConfigError, OSError):
        return
    with enforced(policy):
        for source in models.values():
            refuse_early(source)


def write_table(store: BlockStore, path: Path) -> None:
    """Write the statistics of all blocks as parquet, one row a block."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mango.checkpoints import write_file

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(store.table()), sink, compression="zstd")
    write_file(path, sink.getvalue().to_pybytes())


if __name__ == "__main__":
    run_stage(NAME, extract_blocks, sections=SECTIONS, help_text=__doc__, first=refuse_models)
