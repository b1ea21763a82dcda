from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import threading
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mango.checkpoints import Checkpoint, ModelSource, convert_pickles, read_report, resolve, sha256_file, verify
from mango.errors import CheckpointError, IntegrityError, UnsafeFileError
from mango.security import Policy, Rule, Tier

sys.path.insert(0, str(Path(__file__).parent))
import pickled

UNKNOWN = Policy(default=Tier.UNKNOWN)


def flat(value: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a directly loaded checkpoint by the names that its conversion should have."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, torch.Tensor):
        return {"tensor": value}
    if isinstance(value, Mapping):
        for key in ("state_dict", "model", "module"):
            if isinstance(value.get(key), Mapping):
                return flat(value[key])
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    found: dict[str, torch.Tensor] = {}
    for key, item in items:
        if isinstance(item, torch.Tensor):
            found[str(key)] = item
        else:
            found |= {f"{key}.{name}": tensor for name, tensor in flat(item).items()}
    return found


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def assert_bit_equal(folder: Path, direct: dict[str, torch.Tensor]) -> None:
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.names() == sorted(direct)
    for name, tensor in direct.items():
        found = checkpoint.tensor(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert bits(found) == bits(tensor), name


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return pickled.benign(tmp_path_factory.mktemp("benign"))


FORMS = [
    "types", "views", "ordered", "nested", "model-key", "two-parts", "lone", "list", "protocol-5", "stream",
    "stream-views", "module", "module-stream", "raw-pickle", "tar",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_becomes_safetensors_bit_equal_to_a_direct_load(
    form: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    file = checkpoints[form]
    assert set(checkpoints) == set(FORMS)
    if form == "raw-pickle":
        direct = pickle.loads(file.read_bytes())
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules["__main__"], "Small", pickled.Small, raising=False)
            direct = torch.load(file, weights_only=False)
    folder = convert_pickles(file, tmp_path, tier=Tier.UNKNOWN)
    assert_bit_equal(folder, flat(direct))
    verify(folder)
    report = read_report(folder)
    assert report is not None
    (read,) = report["inputs"]
    assert read["read"] == ("by loading" if form == "raw-pickle" else "inertly")
    assert read["sandbox"]["landlock"] >= 1
    assert read["sandbox"]["uid"] != 0
    assert [said["status"] for said in read["scanners"].values()] == ["done", "done"]
    assert folder.name == f"v1-{sha256_file(file)}"


def model_folder(folder: Path, state: dict[str, torch.Tensor], shards: int = 1) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_own.py").write_text("raise SystemExit('code ran')")
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    names = sorted(state)
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        torch.save({name: state[name] for name in names[number::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[number::shards], file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_model_folder_is_converted_once_without_its_code(tmp_path: Path) -> None:
    state = {"b": torch.randn(4, 3), "a": torch.randn(2).half(), "c": torch.arange(5)}
    for shards in (1, 2):
        folder = model_folder(tmp_path / f"of-{shards}", state, shards)
        found = resolve(ModelSource(source=str(folder)), tmp_path / "cache", UNKNOWN)
        assert_bit_equal(found, state)
        stamp = (found / "config.json").stat().st_mtime_ns
        assert resolve(ModelSource(source=str(folder)), tmp_path / "cache", UNKNOWN) == found
        assert (found / "config.json").stat().st_mtime_ns == stamp
        assert not (found / "modeling_own.py").exists()
        assert (found / "tokenizer.json").is_file()


def test_tiers_decide_what_is_read(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", {"a": torch.ones(2)})
    source = ModelSource(source=str(folder))
    with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin: .*tier `community`.*`unknown`"):
        resolve(source, tmp_path / "cache", Policy())
    trusted = resolve(source, tmp_path / "cache", Policy(default=Tier.TRUSTED))
    assert_bit_equal(trusted, {"a": torch.ones(2)})
    assert (read_report(trusted) or {})["inputs"][0]["read"] == "as weights only"
    torch.save({"a": torch.ones(2), "b": Path("/x")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"torch does not read it as weights only.*tier `unknown`"):
        resolve(source, tmp_path / "cache", Policy(default=Tier.TRUSTED))


def test_a_rule_pins_the_hash_of_the_weights(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", {"a": torch.ones(2)})
    policy = Policy(rules=(Rule(tier=Tier.TRUSTED, sha256=(sha256_file(folder / "pytorch_model.bin"),)),))
    resolve(ModelSource(source=str(folder)), tmp_path / "cache", policy)
    torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="tier `community`"):
        resolve(ModelSource(source=str(folder)), tmp_path / "cache", policy)


def index_of(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_an_index_is_held_to_its_shards(tmp_path: Path) -> None:
    state = {"a": torch.ones(2), "b": torch.ones(3)}
    folder = model_folder(tmp_path / "model", state, 2)
    first, second = sorted(path.name for path in folder.glob("*.bin"))

    def refused(match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            convert_pickles(folder, tmp_path / "cache", tier=Tier.UNKNOWN)

    torch.save({"a": torch.ones(2)}, tmp_path / "outside.bin")
    index_of(folder, {"a": "../outside.bin", "b": second})
    refused("a shard lies beside its index")
    index_of(folder, {"a": first, "b": "pytorch_model-00009.bin"})
    refused(r"pytorch_model-00009\.bin: shard is missing")
    index_of(folder, {"a": first, "b": second, "c": second})
    refused("puts 'c' into")
    index_of(folder, {"a": first, "b": first, "z": second})
    refused("puts 'b' into")
    (folder / "linked.bin").symlink_to(tmp_path / "outside.bin")
    index_of(folder, {"a": "linked.bin", "b": second})
    refused("outside of")


def rewritten(file: Path, target: Path, **options: Any) -> Path:
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return target


def test_archives_that_mislead_are_refused(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    def refused(file: Path, match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            convert_pickles(file, tmp_path / "cache", tier=Tier.UNKNOWN)

    good = checkpoints["ordered"]
    refused(rewritten(good, tmp_path / "deflated.pt", compression=zipfile.ZIP_DEFLATED), "compresses .*zip bomb")
    with zipfile.ZipFile(rewritten(good, tmp_path / "dots.pt"), "a") as archive:
        archive.writestr("../../outside", b"x")
    refused(tmp_path / "dots.pt", r"'\.\./\.\./outside', which leads out")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(good.read_bytes()[:-700])
    refused(cut, "damaged zip archive")
    stream = tmp_path / "stream.pt"
    stream.write_bytes(checkpoints["stream"].read_bytes()[:-9])
    refused(stream, "truncated")
    (tmp_path / "text.bin").write_text("hello")
    refused(tmp_path / "text.bin", r"is no checkpoint .*\(text\)")
    torch.save({"a": 1}, tmp_path / "nothing.pt")
    refused(tmp_path / "nothing.pt", "no state dict of tensors: its keys are 'a'")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    refused(tmp_path / "sparse.pt", "holds 'a', which is sparse")
    torch.save({"a": torch.ones(2, dtype=torch.complex128)}, tmp_path / "complex.pt")
    refused(tmp_path / "complex.pt", "safetensors files cannot hold")
    torch.save({"a": torch.ones(1).expand(1 << 40)}, tmp_path / "wide.pt")
    refused(tmp_path / "wide.pt", "would become 43980465112")


def test_what_scanners_say_is_in_the_report_and_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"state_dict": {"a": torch.ones(2)}, "extra": Evil()}, tmp_path / "evil.pt")
    with caplog.at_level(logging.WARNING):
        folder = convert_pickles(tmp_path / "evil.pt", tmp_path / "cache", tier=Tier.UNKNOWN)
    assert_bit_equal(folder, {"a": torch.ones(2)})
    assert not (tmp_path / "ran").exists()
    (read,) = (read_report(folder) or {})["inputs"]
    assert "posix.system" in read["names"]
    assert {"severity": "dangerous", "pickle": "evil/data.pkl", "what": "posix.system"} in (
        read["scanners"]["picklescan"]["findings"]
    )
    assert read["scanners"]["fickling"]["findings"]
    assert "picklescan warns of posix.system (dangerous)" in caplog.text


def test_two_threads_convert_once(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(convert_pickles(tmp_path / "a.pt", tmp_path, tier=Tier.UNKNOWN)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.pt"
    torch.save({"a": torch.ones(2)}, file)
    content = file.read_bytes()
    from mango.checkpoints import conversion

    honest = conversion.InSandbox.convert

    def swapped(self: conversion.InSandbox, source: Path, target: Path) -> conversion.Reading:
        source.write_bytes(content)
        return honest(self, source, target)

    monkeypatch.setattr(conversion.InSandbox, "convert", swapped)
    with pytest.raises(IntegrityError, match="was changed while it was read"):
        convert_pickles(file, tmp_path / "cache", tier=Tier.UNKNOWN)


def test_torchscript_gives_its_state_dict_and_its_code_stays_unread(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        torch.jit.save(scripted, str(tmp_path / "script.pt"))
    folder = convert_pickles(tmp_path / "script.pt", tmp_path, tier=Tier.UNKNOWN)
    assert_bit_equal(folder, dict(scripted.state_dict()))
