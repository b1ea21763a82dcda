"""Weights and folders that mislead: names, links, kinds of files, hashes, values."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mango.checkpoints import (
    MANIFEST_NAME,
    Checkpoint,
    check_hashes,
    check_values,
    open_config,
    open_model,
    replace_folder,
    verify,
    wrong_values,
)
from mango.checkpoints.headers import read_header
from mango.checkpoints.magic import recognise_bytes
from mango.errors import CheckpointError, IntegrityError, UnsafeFileError

Write = Callable[..., Path]
TINY = LlamaConfig(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=16,
)


def entry(end: int, dtype: str = "F32", shape: tuple[int, ...] = (1,), start: int = 0) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model, written as a stage writes it."""
    folder = tmp_path / "model"
    with replace_folder(folder) as new:
        LlamaForCausalLM(TINY).save_pretrained(new)
    return folder


@pytest.mark.parametrize(
    "name", ["", "a\0b", "../../x", "/etc/passwd", "a/../../b", "a//b", "..\\x", "\u202e", "\ud800", "x" * 2000]
)
def test_a_name_that_misleads_is_refused(tmp_path: Path, raw_file: Write, name: str) -> None:
    raw_file(tmp_path / "model.safetensors", {name: entry(4)}, bytes(4))
    with pytest.raises(UnsafeFileError, match=r"model\.safetensors.*name"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.weight", "encoder/layer_0/kernel", "gewöhnlich"])
def test_an_ordinary_name_passes(tmp_path: Path, raw_file: Write, name: str) -> None:
    raw_file(tmp_path / "model.safetensors", {name: entry(4)}, bytes(4))
    assert Checkpoint.open(tmp_path).names() == [name]


def test_a_file_of_100000_tensors_is_read_and_a_bomb_is_not(tmp_path: Path, raw_file: Write) -> None:
    file = tmp_path / "model.safetensors"
    many = ",".join(f'"model.layers.{i}.weight":{json.dumps(entry(4 * i + 4, start=4 * i))}' for i in range(100_000))
    raw_file(file, f"{{{many}}}".encode(), bytes(400_000))
    assert len(read_header(file)) == 100_000
    empty = ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(300_000))
    raw_file(file, f"{{{empty}}}".encode(), b"")
    started = time.process_time()
    with pytest.raises(UnsafeFileError, match="at most"):
        read_header(file)
    assert time.process_time() - started < 5


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return buffer.getvalue()


KINDS = {
    "pickle": pickle.dumps({"a": 1}),
    "old pickle": pickle.dumps(os.getcwd, protocol=0),
    "zip": _zip(),
    "gguf": b"GGUF" + bytes(100),
    "executable": b"\x7fELF" + bytes(100),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "json": b'{"a": 1}' + bytes(100),
    "tar": bytes(257) + b"ustar" + bytes(300),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_a_file_is_its_bytes_say_and_not_its_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(KINDS[kind])
    with pytest.raises(UnsafeFileError, match="not a safetensors file, whatever its name says"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_bytes(KINDS[kind])
    if kind != "json":
        with pytest.raises(CheckpointError, match=r"config\.json: is no JSON"):
            open_config(tmp_path)


def test_magic_tells_text_from_pickles() -> None:
    assert recognise_bytes(b"") == "empty"
    assert recognise_bytes(b"cats are fine\nand dogs\nas well") == "pickle"  # as protocol 0 begins: refused, not read
    assert recognise_bytes("Äpfel\n".encode()) == "text"
    assert recognise_bytes(b"\0\1\2") == "unknown"


def test_a_link_out_of_the_folder_is_refused_and_the_hubs_own_links_are_not(tmp_path: Path, raw_file: Write) -> None:
    outside = raw_file(tmp_path / "elsewhere" / "x.safetensors", {"a": entry(4)}, bytes(4))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(UnsafeFileError, match=r"model\.safetensors: leads to .*outside of"):
        Checkpoint.open(folder)
    repository = tmp_path / "models--someone--model"
    raw_file(repository / "blobs" / "abc", {"a": entry(4)}, bytes(4))
    snapshot = repository / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert Checkpoint.open(snapshot).names() == ["a"]
    (snapshot / "config.json").symlink_to(outside)
    with pytest.raises(UnsafeFileError, match=r"config\.json: leads to"):
        open_config(snapshot)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/x.safetensors", ".x.safetensors", "a\0.safetensors", ""])
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, raw_file: Write, file: str) -> None:
    raw_file(tmp_path / "outside.safetensors", {"a": entry(4)}, bytes(4))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
    with pytest.raises(UnsafeFileError, match=r"index\.json: puts 'a' into"):
        Checkpoint.open(folder)


def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UnsafeFileError, match="is no plain file"):
        open_config(tmp_path)


def test_a_flipped_bit_is_found_at_load_even_when_the_time_is_set_back(model: Path) -> None:
    file = model / "model.safetensors"
    found = open_model(model)
    assert not found.training
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    for opened in (open_model, Checkpoint.open, check_hashes, open_config):
        with pytest.raises(IntegrityError, match=r"model\.safetensors: BLAKE3 is"):
            opened(model)


def test_a_file_is_hashed_once_in_a_process(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mango.checkpoints import vouching

    hashed: list[str] = []
    real = vouching.blake3_file
    monkeypatch.setattr(vouching, "blake3_file", lambda path: hashed.append(path.name) or real(path))
    open_model(model)
    assert sorted(hashed) == ["config.json", "generation_config.json", "model.safetensors"]
    open_model(model)
    Checkpoint.open(model)
    assert len(hashed) == 3


def test_a_manifest_of_sha256_alone_still_vouches_and_either_hash_can_refuse(model: Path) -> None:
    manifest = model / MANIFEST_NAME
    whole = json.loads(manifest.read_text())
    for key in ("blake3", "sha256"):
        wrong = json.loads(manifest.read_text())
        wrong["files"]["model.safetensors"][key] = "0" * 64
        manifest.write_text(json.dumps(wrong))
        with pytest.raises(IntegrityError, match=r"model\.safetensors: (BLAKE3|SHA-256) is .* says 000000000000"):
            verify(model)
        manifest.write_text(json.dumps(whole))
    for entry in whole["files"].values():
        del entry["blake3"]
    manifest.write_text(json.dumps(whole))
    verify(model)
    open_model(model)
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.safetensors: SHA-256 is"):
        open_model(model)


def test_files_that_come_go_or_are_a_models_inside_an_output(tmp_path: Path, model: Path) -> None:
    shutil.copy(model / "config.json", model / "more.json")
    with pytest.raises(IntegrityError, match=r"more\.json: is not in MANIFEST\.json"):
        open_model(model)
    (model / "more.json").unlink()
    (model / "generation_config.json").unlink()
    with pytest.raises(IntegrityError, match=r"generation_config\.json: is in MANIFEST\.json but missing"):
        open_model(model)
    several = tmp_path / "several"
    with replace_folder(several) as new:
        LlamaForCausalLM(TINY).save_pretrained(new / "one")
    open_model(several / "one")
    file = several / "one" / "config.json"
    file.write_text(file.read_text().replace("silu", "gelu"))
    with pytest.raises(IntegrityError, match=r"one/config\.json"):
        open_model(several / "one")


def test_nan_and_infinity_are_reported_by_name(tmp_path: Path, write: Write) -> None:
    good = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.bfloat16)}
    bad = good | {"c": torch.tensor([1.0, float("nan")]), "d": torch.tensor([float("-inf")] * 2).half()}
    bad["e"] = torch.tensor([1.0, float("nan")]).to(torch.float8_e5m2)
    check_values(Checkpoint.open(write(tmp_path / "good", good)))
    opened = Checkpoint.open(write(tmp_path / "bad", bad))
    assert [(w.name, w.nans, w.infinities) for w in wrong_values(opened)] == [("c", 1, 0), ("d", 0, 2), ("e", 1, 0)]
    with pytest.raises(IntegrityError, match=r"model\.safetensors: tensor 'c' holds 1 NaN; and so do 2 more"):
        check_values(opened)


def test_a_truth_value_that_is_neither_0_nor_1_is_refused(tmp_path: Path, raw_file: Write) -> None:
    raw_file(tmp_path / "model.safetensors", {"mask": entry(2, "BOOL", (2,))}, b"\x01\xff")
    opened = Checkpoint.open(tmp_path)
    with pytest.raises(IntegrityError, match="'mask' is BOOL and holds bytes other than 0 and 1"):
        opened.tensor("mask")
    assert wrong_values(opened)[0].bad_truths == 1


@pytest.mark.parametrize("change", ["missing", "surplus"])
def test_missing_and_surplus_tensors_are_named(tmp_path: Path, change: str) -> None:
    from safetensors.torch import load_file, save_file

    LlamaForCausalLM(TINY).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors["model.layers.0.mlp.side_proj.weight"] = tensors.pop(name) if change == "missing" else torch.ones(1)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    wanted = f"missing {name}; surplus" if change == "missing" else "surplus model.layers.0.mlp.side_proj.weight"
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: its tensors are not those .*{wanted}"):
        open_model(tmp_path)


def test_a_configuration_of_more_than_the_weights_hold_is_refused_before_it_is_built(model: Path) -> None:
    plain = model.parent / "plain"
    shutil.copytree(model, plain, ignore=shutil.ignore_patterns("MANIFEST.json"))
    raw = json.loads((plain / "config.json").read_text())
    for key, value in (("num_hidden_layers", 1000), ("vocab_size", 10_000_000)):
        (plain / "config.json").write_text(json.dumps(raw | {key: value}))
        with pytest.raises(CheckpointError, match=f"{key} is {value}, but the weights hold"):
            open_model(plain)
