"""``mango architectures`` and what ``mango inspect`` says of fusion, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mango.architectures.support import support_table
from mango.checkpoints import sources
from mango.cli import app
from mango.errors import UnsafeFileError
from tests.blocks.bad_models import SMALL
from tests.blocks.families import save_model
from tests.blocks.sparse import sparse_model
from tests.fusion.heads import save_head
from tests.fusion.sighted import PREFIX, SIGHTED

ROW = {"model_type", "task", "family", "host", "guest", "fused", "cached_decode", "reason", "whole"}
EYES = {"llava": SIGHTED["llava"], "prefix": PREFIX}
COMPONENTS = {
    "model_type", "architecture", "blocks", "block_class", "num_blocks", "width", "num_heads", "num_kv_heads",
    "head_dim", "intermediate_size", "vocab_size", "max_positions", "embeddings", "position_embeddings", "final_norm",
    "head", "tied", "dtype", "task", "family", "before", "after", "stacks",
}  # fmt: skip
STACK = {
    "role", "path", "block_class", "num_blocks", "width", "isotropic", "num_heads", "num_kv_heads", "head_dim",
    "attention", "carried", "before", "after", "between", "order",
}  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            app.main(arguments)
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return command


def test_the_table_has_a_row_for_each_model_type(run: Callable[..., tuple[int, str, str]]) -> None:
    code, shown, _ = run("architectures")
    assert code == 0
    lines = shown.splitlines()
    assert lines[0].split() == ["model", "type", "family", "host", "guest", "fused", "cached", "decode", "reason"]
    assert [line.split()[0] for line in lines[2:]] == sorted(support_table())
    assert next(line for line in lines if line.startswith("llama ")).split() == ["llama", "causal", *["yes"] * 4]


def test_the_table_for_machines(run: Callable[..., tuple[int, str, str]]) -> None:
    code, shown, _ = run("architectures", "--json")
    rows: list[dict[str, Any]] = json.loads(shown)
    assert code == 0
    assert all(row.keys() == ROW for row in rows)
    assert all(isinstance(row[name], bool) for row in rows for name in ("host", "guest", "fused", "cached_decode"))
    assert {row["model_type"] for row in rows if row["whole"] is not None} >= {"gemma4", "gemma4_text"}
    assert all(row["fused"] for row in rows if row["whole"] is not None)
    assert [row["model_type"] for row in rows if row["reason"] is None and not row["cached_decode"]] == []
    assert len(json.loads(run("architectures", "--family", "seq2seq", "--json")[1])) > 20
    assert [row["model_type"] for row in json.loads(run("architectures", "bart", "--json")[1])] == ["bart"]


def test_what_is_not_in_the_table(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("architectures", "lama")[2].startswith("error: unknown model type 'lama'; did you mean 'llama'?")
    code, _, said = run("architectures", "--family", "decoder")
    assert (code, said.splitlines()[0]) == (
        2,
        "error: --family decoder: unknown. Known: audio, causal, masked, multimodal, other, seq2seq, text, vision",
    )


def test_inspect_says_everything_for_machines(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m")
    code, shown, _ = run("inspect", str(folder), "--json")
    found = json.loads(shown)
    assert code == 0
    assert found["components"].keys() >= COMPONENTS
    assert [stack.keys() >= STACK for stack in found["components"]["stacks"]] == [True]
    assert found["extractable"] == [0, 1, 2]
    assert (found["host"], found["guest"], found["fusion"]["possible"], found["fusion"]["reason"]) == (
        True, True, True, None,
    )  # fmt: skip
    assert {"gpt2", "llama", "qwen3", "mistral"} <= set(found["fusion"]["partners"])
    assert "bert" not in found["fusion"]["partners"]
    assert any("ridge regression" in line for line in found["fusion"]["adapters"])
    assert found["weight_bytes"] == 4 * found["num_parameters"]
    assert found["cache_bytes_per_token"] == 3 * 2 * 2 * 8 * 4


def test_inspect_says_which_experts_of_text_a_model_that_reads_images_takes(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    folders = {name: save_head(tmp_path / name, config, "image-text-to-text", seed=0) for name, config in EYES.items()}
    found = {name: json.loads(run("inspect", str(folder), "--json")[1]) for name, folder in folders.items()}
    llava = found["llava"]
    assert [stack["role"] for stack in llava["components"]["stacks"]] == ["text", "vision"]
    assert llava["components"]["blocks"] == "language_model.layers"
    assert (llava["fusion"]["possible"], llava["fusion"]["reason"]) == (True, None)
    assert {"llama", "qwen3", "llava"} <= set(llava["fusion"]["partners"])
    assert "bert" not in llava["fusion"]["partners"]
    assert not found["prefix"]["fusion"]["possible"]
    assert "a token of its prompt sees those behind it" in found["prefix"]["fusion"]["reason"]


def test_inspect_says_the_same_with_and_without_the_weights(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    folder = sparse_model(tmp_path / "m", **SMALL)
    stored = json.loads(run("inspect", str(folder), "--json")[1])
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    declared = json.loads(run("inspect", str(folder), "--json")[1])
    assert (stored.pop("stored"), declared.pop("stored")) == (True, False)
    assert stored == declared


def test_inspect_asks_the_policy_about_hub_ids(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mango.blocks import inspection

    asked = []

    def refuse(source: sources.ModelSource) -> None:
        asked.append((source.source, source.revision))
        raise UnsafeFileError("someone/model: no revision is given, and the policy wants a commit")

    monkeypatch.setattr(inspection, "admit_hub", refuse)
    code, _, said = run("inspect", "someone/model", "--revision", "main")
    assert (code, asked) == (2, [("someone/model", "main")])
    assert said.startswith("error: someone/model: no revision is given, and the policy wants a commit")
