"""Extraction by reference: it reads headers only, and its blocks are those of the files that it saw."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mango.architectures.outlines import fit, outlines
from mango.blocks import BlockStore, Mode, extract
from mango.blocks.layout import fill_layout, plan_layout
from mango.blocks.quick import quick_layout
from mango.checkpoints import Checkpoint, ModelSource, replace_folder, vouching
from mango.errors import ArchitectureError, CheckpointError, IncompatibleBlocksError, IntegrityError
from mango.fusion import AdapterParams, FusionParams, RouterParams, build_fused
from tests.blocks.families import FAMILIES, save_model
from tests.blocks.sparse import BIG, sparse_model

WATCHED = {
    "gpt2": "its inner width is set, which is unusual",
    "gpt_neox": "its head has another name in files",
    "qwen2": "its blocks are of two kinds",
}
"""Families whose tiny models no outline fits; what is watched is tested elsewhere."""


def source(folder: Path) -> ModelSource:
    return ModelSource(source=str(folder))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANGO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "source", sharded=True)


@pytest.fixture
def store(tmp_path: Path, folder: Path) -> BlockStore:
    return extract({"m": source(folder)}, tmp_path / "store", "reference")


def overwrite(file: Path, *, keep_times: bool = False) -> None:
    """Flip the last bit of a file, in place."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    if keep_times:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_model_of_8_billion_parameters_costs_its_headers(tmp_path: Path) -> None:
    big = sparse_model(tmp_path / "big", **BIG)
    script = (
        "import sys; from mango.cli.app import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0], 'torch' in sys.modules)"
    )
    arguments = ["extract", str(big), "--out", str(tmp_path / "store")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak_kib, torch_too = done.stdout.splitlines()[-1].split()
    assert torch_too == "False"
    assert int(peak_kib) < 300 * 1024
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    assert sum(file.stat().st_blocks for file in big.glob("*.safetensors")) * 512 < 1 << 20  # still holes
    stored = BlockStore.open(tmp_path / "store").model("big")
    assert (len(stored.blocks), stored.blocks[31].num_parameters, stored.architecture.width) == (32, 218_112_000, 4096)


@pytest.mark.parametrize("mode", ["reference", "copy"])
def test_a_model_needs_no_tokenizer(tmp_path: Path, folder: Path, mode: Mode) -> None:
    (folder / "tokenizer.json").unlink()
    store = extract({"m": source(folder)}, tmp_path / "store", mode)
    assert store.model("m").tokenizer_sha256 is None
    assert store.load_block("m", 1) is not None
    fusion = FusionParams.model_validate({"trunk": "m", "experts": ["m"]})
    with pytest.raises(IncompatibleBlocksError, match=r"'m' has no tokenizer, so nothing tells"):
        build_fused(store, fusion, RouterParams(), AdapterParams(type="linear"), seed=0)


def test_a_block_reads_its_own_bytes_only(tmp_path: Path) -> None:
    shape = {"layers": 12, "width": 1024, "inner": 3584, "vocab": 512, "kv_width": 256, "shards": 2}
    store = extract({"m": source(sparse_model(tmp_path / "m", **shape))}, tmp_path / "store", "reference")

    def mapped_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("RssFile:")))

    store.load_block("m", 0)  # libraries that a first block maps
    before = mapped_kib()
    block = store.load_block("m", 7)
    rotary = (torch.ones(1, 3, 128, dtype=torch.bfloat16),) * 2
    with torch.no_grad():
        block(torch.ones(1, 3, 1024, dtype=torch.bfloat16), position_embeddings=rotary)
    size = store.block("m", 7).num_bytes
    assert 0.9 * size < 1024 * (mapped_kib() - before) < 1.6 * size


def test_blocks_are_those_of_the_files(folder: Path, store: BlockStore) -> None:
    stored = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert {file.sha256 for file in store.model("m").files} == {None}
    assert store.block("m", 1).sha256 is None
    found = {f"model.layers.1.{name}": tensor for name, tensor in store.block_tensors("m", 1).items()}
    found |= store.edge_tensors("m")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in found.items())
    assert store.load_block("m", 1).self_attn.layer_idx == 1


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_file_that_changed_is_refused_whatever_its_times_say(
    folder: Path, store: BlockStore, keep_times: bool
) -> None:
    file = next(path for path in folder.glob("*.safetensors") if path.name == store.block("m", 1).tensors[0].file[-32:])
    overwrite(file, keep_times=keep_times)
    with pytest.raises(IntegrityError, match=r"is not the file that was extracted, and block 1 of 'm' lies in it"):
        store.load_block("m", 1)


def test_a_file_that_was_replaced_truncated_or_removed_is_refused(folder: Path, store: BlockStore) -> None:
    file = Path(store.block("m", 0).tensors[0].file)
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(CheckpointError, match="missing, and block 0 of 'm' lies in it"):
        store.block_tensors("m", 0)
    file.write_bytes(content)  # the same bytes: nothing tells so
    with pytest.raises(IntegrityError, match="it was written or replaced at"):
        store.block_tensors("m", 0)
    file.write_bytes(content.replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(IntegrityError, match="its header is another"):
        store.block_tensors("m", 0)
    file.write_bytes(content[:-4])
    with pytest.raises(IntegrityError, match="truncated or replaced"):
        store.block_tensors("m", 0)


def test_where_the_hub_says_a_files_hash_it_may_move(tmp_path: Path) -> None:
    plain = save_model(tmp_path / "plain")
    digest = vouching.known_sha256(plain / "model.safetensors")
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "c0ffee", tmp_path / "hub" / "blobs"
    shutil.copytree(plain, snapshot)
    blobs.mkdir()
    (snapshot / "model.safetensors").rename(blobs / digest)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{digest}")
    store = extract({"m": source(snapshot)}, tmp_path / "store", "reference")
    assert [file.sha256 for file in store.model("m").files] == [digest]
    content = (blobs / digest).read_bytes()
    (blobs / digest).unlink()
    (blobs / digest).write_bytes(content)
    assert store.load_block("m", 2) is not None
    overwrite(blobs / digest)
    with pytest.raises(IntegrityError, match="its bytes have another SHA-256"):
        store.load_block("m", 2)


def test_what_a_manifest_vouches_for_is_checked_when_it_is_first_used(tmp_path: Path, folder: Path) -> None:
    with replace_folder(tmp_path / "merged") as new:
        shutil.copytree(folder, new, dirs_exist_ok=True)
    file = next((tmp_path / "merged").glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    with pytest.raises(IntegrityError, match=r"too long|MANIFEST\.json says"):
        extract({"m": source(tmp_path / "merged")}, tmp_path / "store", "reference")
    file.write_bytes(content)
    store = extract({"m": source(tmp_path / "merged")}, tmp_path / "store", "reference")
    assert all(file.sha256 for file in store.model("m").files)
    assert store.block_tensors("m", 0)
    overwrite(file)
    vouching.forget()
    with pytest.raises(IntegrityError):
        BlockStore.open(store.folder).block_tensors("m", 0)


def test_hashes_are_taken_when_asked_for_and_kept(
    tmp_path: Path, folder: Path, store: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mango.blocks import store as module

    hashed = extract({"m": source(folder)}, tmp_path / "hashed", "reference", hashed=True)
    wanted = [block.sha256 for block in hashed.model("m").blocks]
    assert [store.block_sha256("m", index) for index in range(3)] == wanted
    assert store.edges_sha256("m") == hashed.model("m").edges_sha256 == hashed.edges_sha256("m")
    monkeypatch.setattr(module, "hash_tensors", lambda _tensors: pytest.fail("it was kept"))
    again = BlockStore.open(store.folder)
    assert [again.block_sha256("m", index) for index in range(3)] == wanted
    overwrite(Path(store.block("m", 0).tensors[0].file))
    with pytest.raises(IntegrityError, match="is not the file that was extracted"):
        BlockStore.open(store.folder).block_sha256("m", 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_outline_says_what_watching_says(tmp_path: Path, family: str) -> None:
    checkpoint = Checkpoint.open(save_model(tmp_path / family, family, sharded=True))
    quick = quick_layout(checkpoint)
    watched = fill_layout(plan_layout(checkpoint), {}, family)
    if family in WATCHED:
        assert quick is None
        return
    assert quick is not None
    assert (quick.components, quick.blocks, quick.edges) == (watched.components, watched.blocks, watched.edges)


def test_an_outline_answers_only_where_everything_fits(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(save_model(tmp_path / "llama"))
    raw, shapes = checkpoint.config(), {info.name: info.shape for info in checkpoint.infos()}
    kind = outlines()["types"]["llama"]

    def answer(raw: dict[str, object], shapes: dict[str, tuple[int, ...]]) -> int:
        return sum(fit(kind, variant, raw, shapes) is not None for variant in kind["variants"])

    assert answer(raw, shapes) == 1
    assert answer(raw | {"num_attention_heads": 8}, shapes) == 0  # heads are half as wide: keys have another width
    assert answer(raw | {"attention_bias": True}, shapes) == 0
    assert answer(raw | {"architectures": ["LlamaForSequenceClassification"]}, shapes) == 0
    assert answer(raw | {"num_hidden_layers": 4}, shapes) == 0
    assert answer(raw, {**shapes, "model.norm.weight": (31,)}) == 0
    assert answer(raw, {**shapes, "model.layers.0.surplus": (1,)}) == 0


def test_a_map_that_watching_contradicts_is_refused(store: BlockStore) -> None:
    model = store.manifest.models["m"]
    assert not model.watched
    wrong = replace(model.architecture, final_norm="model.layers.0.input_layernorm")
    store.manifest.models["m"] = model.model_copy(update={"architecture": wrong})
    with pytest.raises(ArchitectureError, match="extraction took its parts for LlamaForCausalLM"):
        store.load_block("m", 0)


def test_the_manifest_says_how_each_file_was_found(folder: Path, store: BlockStore) -> None:
    document = json.loads((store.folder / "manifest.json").read_text())
    files = document["models"]["m"]["files"]
    assert [Path(file["file"]).name for file in files] == sorted(path.name for path in folder.glob("*.safetensors"))
    for file in files:
        at = Path(file["file"]).stat()
        assert (file["size"], file["modified_ns"], file["changed_ns"], file["inode"]) == (
            at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino,
        )  # fmt: skip
