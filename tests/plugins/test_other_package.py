"""A package of somebody else, built and installed for real, adds parts that configuration files can name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "mango-orchard"
version = "1.0"

[project.entry-points."mango.mergers"]
largest = "mango_orchard.merging"

[project.entry-points."mango.routers"]
sticky = "mango_orchard.routers"

[project.entry-points."mango.adapters"]
shift = "mango_orchard.adapters"

[project.entry-points."mango.architectures"]
orchard = "mango_orchard.architectures"
"""

MERGING = """
import torch
from mango.config import Frozen
from mango.merging import merge_method


class LargestParams(Frozen):
    floor: float = 0.0


@merge_method("largest", LargestParams, base="none")
def largest(tensors, *, dtype, floor=0.0):
    stacked = torch.stack([t.float() for t in tensors])
    picked = stacked.gather(0, stacked.abs().argmax(0, keepdim=True))[0]
    return torch.where(picked.abs() < floor, 0.0, picked).to(dtype)
"""

ROUTERS = """
from mango.fusion import ROUTERS, Pool, Router
from mango.fusion.params import HeadParams


class StickyParams(HeadParams):
    reach: int = 8


@ROUTERS.register("sticky", StickyParams)
class StickyRouter(Router):
    def __init__(self, width, num_experts, params):
        super().__init__(width, num_experts, params)
        self.reach = params.reach

    @property
    def pool(self):
        return Pool("window", self.reach)
"""

ADAPTERS = """
import torch
from torch import nn
from mango.config import Frozen
from mango.fusion import ADAPTERS, Adapter


class ShiftParams(Frozen):
    start: float = 0.0


@ADAPTERS.register("shift", ShiftParams)
class ShiftAdapter(Adapter):
    def __init__(self, width_in, width_out, params):
        super().__init__(width_in, width_out)
        self.start = params.start
        self.by = nn.Parameter(torch.zeros(width_out))

    def start_weights(self, std):
        nn.init.constant_(self.by, self.start)

    def forward(self, states):
        return states + self.by

    def start_from(self, weight, bias):
        raise ValueError("only for equal widths")

    def distance(self):
        return (self.by - self.start).square().mean()
"""

ARCHITECTURES = """
import torch
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaModel
from mango.architectures import ARCHITECTURES, Handler, NoParams


class OrchardConfig(LlamaConfig):
    model_type = "orchard"


class OrchardModel(LlamaModel):
    config_class = OrchardConfig

    def forward(self, input_ids=None, season=None, **kwargs):
        if season is None:
            raise ValueError("an orchard needs a season")
        return super().forward(input_ids=input_ids, **kwargs)


class OrchardHandler(Handler):
    def inputs(self, maker):
        ids = maker.make("input_ids")
        yield {"input_ids": ids, "season": torch.zeros(ids.shape[0])}


AutoConfig.register("orchard", OrchardConfig)
AutoModel.register(OrchardConfig, OrchardModel)
ARCHITECTURES.register("orchard", NoParams)(OrchardHandler())
"""

FUSE = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from mango.blocks import extract
from mango.fusion import build_fused
from stages.params import load_params

params = load_params(Path("params.yaml"), overrides=sys.argv[2:])
store = extract({name: params.models[name] for name in ("base", "code")}, Path(sys.argv[1], "blocks"), "reference")
model = build_fused(store, params.fusion, params.router, params.adapter, seed=0)
ids = torch.arange(40)[None]
before = model(input_ids=ids).logits
model.save_pretrained(Path(sys.argv[1], "fused"))
after = AutoModelForCausalLM.from_pretrained(Path(sys.argv[1], "fused"))(input_ids=ids).logits
kinds = {type(module).__name__ for module in model.modules()}
print(sorted(kinds & {"StickyRouter", "ShiftAdapter"}), torch.equal(before, after), bool(before.isfinite().all()))
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package and install it into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    package = source / "mango_orchard"
    package.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (package / "__init__.py").write_text("")
    for name, text in (
        ("merging", MERGING),
        ("routers", ROUTERS),
        ("adapters", ADAPTERS),
        ("architectures", ARCHITECTURES),
    ):
        (package / f"{name}.py").write_text(text)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, capture_output=True)
    return target


def run_with(installed: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that sees the installed package."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(installed)])}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environ, cwd=ROOT
    )


@pytest.mark.slow
def test_a_merge_method_of_another_package_merges(installed: Path, tmp_path: Path) -> None:
    document = tmp_path / "largest.yaml"
    document.write_text(
        "merge_method: largest\nmodels: [{model: code}, {model: novels}]\nparameters: {floor: 0.001}\ndtype: float32\n"
    )
    command = "import sys; from mango.cli.app import main; main(sys.argv[1:])"
    out = tmp_path / "out"
    done = run_with(installed, command, "merge", str(document), str(out), "--models", "params.yaml")
    assert done.returncode == 0, done.stderr

    from mango.checkpoints import Checkpoint

    tiny = ROOT / "models" / "tiny"
    merged, code, novels = (Checkpoint.open(folder) for folder in (out, tiny / "code", tiny / "novels"))
    name = "model.layers.1.mlp.up_proj.weight"
    pair = [model.tensor(name).float() for model in (code, novels)]
    largest = pair[0].where(pair[0].abs() >= pair[1].abs(), pair[1])
    assert merged.tensor(name).equal(largest.where(largest.abs() >= 0.001, 0.0))


@pytest.mark.slow
def test_a_router_and_an_adapter_of_another_package_fuse(installed: Path, tmp_path: Path) -> None:
    overrides = ["fusion.experts=[code]", "router.type=sticky", "adapter={type: shift, shift: {start: 0.01}}"]
    done = run_with(installed, FUSE, str(tmp_path), *overrides)
    assert done.stdout.splitlines()[-1:] == ["['ShiftAdapter', 'StickyRouter'] True True"], done.stderr


ORCHARD = """
import json, sys, torch
from pathlib import Path
from mango_orchard.architectures import OrchardConfig, OrchardModel
from tests.blocks.sparse import write_tokenizer
sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, vocab_size=64)
torch.manual_seed(0)
model = OrchardModel(OrchardConfig(**sizes, bos_token_id=0, eos_token_id=1))
model.save_pretrained(sys.argv[1])
write_tokenizer(Path(sys.argv[1]), 64)
print(float(model.layers[2].mlp.up_proj.weight.sum()))
"""
STORED = """
import sys
from mango.blocks import BlockStore
block = BlockStore.open(sys.argv[1]).load_block("grove", 2)
print(type(block).__name__, float(block.mlp.up_proj.weight.sum()))
"""


@pytest.mark.slow
def test_a_model_type_of_another_package_is_found_through_its_handler(installed: Path, tmp_path: Path) -> None:
    grove, store = tmp_path / "grove", tmp_path / "store"
    total = run_with(installed, ORCHARD, str(grove)).stdout.splitlines()[-1]
    command = "import sys; from mango.cli.app import main; main(sys.argv[1:])"
    found = run_with(installed, command, "inspect", str(grove), "--json")
    assert found.returncode == 0, found.stderr
    parts = json.loads(found.stdout)["components"]
    assert (parts["architecture"], parts["num_blocks"], parts["width"]) == ("OrchardModel", 3, 32)
    done = run_with(installed, command, "extract", str(grove), "--out", str(store))
    assert done.returncode == 0, done.stderr
    assert run_with(installed, STORED, str(store)).stdout.splitlines()[-1] == f"LlamaDecoderLayer {total}"
    without = run_with(tmp_path, command, "inspect", str(grove))
    assert without.returncode == 2
    assert "model type 'orchard' is unknown to the installed transformers" in without.stderr


def test_its_parameters_are_checked_by_its_own_models(installed: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    for replaced, chosen in (
        ("method: task_arithmetic", "method: largest\n  largest: {flor: 1}"),
        ("type: token", "type: sticky\n  sticky: {reach: many}"),
        ("type: linear", "type: shift\n  shift: {stort: 1}"),
    ):
        text = text.replace(replaced, chosen)
    params.write_text(text)
    code = "import sys, pathlib; from stages.params import load_params; load_params(pathlib.Path(sys.argv[1]))"
    shown = run_with(installed, code, str(params)).stderr
    line = {key: n for n, row in enumerate(text.splitlines(), 1) for key in ("flor", "reach", "stort") if key in row}
    assert f"{params}:{line['flor']} merge.largest.flor: unknown key; did you mean 'floor'?" in shown
    assert f"{params}:{line['reach']} router.sticky.reach: 'many': wanted a valid integer" in shown
    assert f"{params}:{line['stort']} adapter.shift.stort: unknown key; did you mean 'start'?" in shown


WITHOUT = """
from mango.errors import UnknownNameError
from mango.fusion import ADAPTERS, ROUTERS
from mango.merging import MERGERS

for registry, name in ((MERGERS, "largest"), (ROUTERS, "sticky"), (ADAPTERS, "shift")):
    try:
        registry[name]
    except UnknownNameError as error:
        print(error)
"""


def test_without_the_package_the_names_are_unknown(tmp_path: Path) -> None:
    assert run_with(tmp_path, WITHOUT).stdout.splitlines() == [
        "unknown merge method 'largest'. Known: adamerging, adamerging_pp, arcee_fusion, breadcrumbs, "
        "breadcrumbs_ties, dare_linear, dare_ties, della, della_linear, emr, fisher, iso_c, iso_cts, karcher, linear, "
        "magmax, model_stock, multislerp, nearswap, nuslerp, passthrough, ram, ramplus_tl, regmean, sce, slerp, "
        "task_arithmetic, ties, tsv",
        "unknown router 'sticky'. Known: simple, token, topk",
        "unknown adapter 'shift'. Known: bottleneck, linear",
    ]
