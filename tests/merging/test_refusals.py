"""Merges that cannot be: one clear error each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from mango.checkpoints import Checkpoint, ModelSource, replace_folder, verify
from mango.errors import CheckpointError, IntegrityError, MergeError
from mango.merging import merge
from tests.merging.conftest import VOCABULARY
from tests.merging.documents import DOCUMENTS, Family, MakeModel, document


class TestRefusals:
    """Each is one clear error, before a weight is read, and leaves the previous output as it was."""

    @pytest.fixture(autouse=True)
    def _old_output_stays(self, tmp_path: Path) -> Iterator[None]:
        with replace_folder(tmp_path / "out") as new:
            (new / "config.json").write_text("old")
        yield
        verify(tmp_path / "out")
        assert (tmp_path / "out" / "config.json").read_text() == "old"
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]

    @pytest.fixture
    def no_reading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Checkpoint, name: str) -> torch.Tensor:
            raise AssertionError(f"{name} was read")

        monkeypatch.setattr(Checkpoint, "tensor", refuse)

    def refused(self, tmp_path: Path, family: Family, message: str, data: dict[str, Any] | None = None) -> str:
        with pytest.raises(MergeError, match=message) as caught:
            merge(data or DOCUMENTS["linear"], tmp_path / "out", family)
        return str(caught.value)

    @pytest.mark.usefixtures("no_reading")
    def test_missing_models(self, tmp_path: Path, family: Family) -> None:
        del family["b"]
        family["c"] = ModelSource(source=str(tmp_path / "nothing"))
        text = self.refused(tmp_path, family, "model 'b': b: there is no such folder")
        assert "model 'c': " in text
        assert "no such model folder or file" in text

    @pytest.mark.usefixtures("no_reading")
    def test_adapters(self, tmp_path: Path, family: Family) -> None:
        (tmp_path / "lora").mkdir()
        named = f"b+{tmp_path / 'lora'}"
        self.refused(
            tmp_path, family, "holds no adapter_config.json, so it is no", document("linear", "a", named, weight=1)
        )
        self.refused(tmp_path, family, "more than one adapter", document("linear", "a", "b+c+d", weight=1))

    @pytest.mark.usefixtures("no_reading")
    def test_another_architecture(self, tmp_path: Path, family: Family, make_model: MakeModel) -> None:
        config = GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=VOCABULARY, n_positions=32)
        family["b"] = ModelSource(source=str(make_model("gpt2", model=GPT2LMHeadModel(config))))
        text = self.refused(tmp_path, family, "'b' is of another architecture than 'a'")
        assert "model_type 'gpt2' against 'llama'" in text
        assert len(text.splitlines()) == 1

    @pytest.mark.usefixtures("no_reading")
    def test_another_width(self, tmp_path: Path, family: Family, make_model: MakeModel) -> None:
        family["b"] = ModelSource(source=str(make_model("wide", hidden_size=32)))
        self.refused(tmp_path, family, r"'b' is of another architecture .*hidden_size 32 against 16")

    @pytest.mark.usefixtures("no_reading")
    def test_another_vocabulary(self, tmp_path: Path, family: Family, make_model: MakeModel) -> None:
        family["b"] = ModelSource(source=str(make_model("other", text="völlig anderer Text")))
        self.refused(
            tmp_path, family, r"tokenizer of model 'b' is not that of 'a' .*: the same id stands for different"
        )

    def edit(self, source: ModelSource, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
        file = Path(source.source) / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})

    @pytest.mark.usefixtures("no_reading")
    def test_missing_and_surplus_tensors(self, tmp_path: Path, family: Family) -> None:
        self.edit(family["b"], lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
        self.refused(
            tmp_path, family, r"layers\.1\.mlp\.up_proj\.weight: model 'b' has no tensor mlp\.up_proj\.weight of"
        )
        self.edit(family["c"], lambda tensors: tensors.update({"value_head.weight": torch.ones(1)}))
        self.refused(tmp_path, family, r"model 'c' has value_head\.weight that 'a' does not have")

    @pytest.mark.usefixtures("no_reading")
    def test_a_missing_block(self, tmp_path: Path, family: Family) -> None:
        def remove(tensors: dict[str, torch.Tensor]) -> None:
            for name in [name for name in tensors if ".layers.2." in name]:
                del tensors[name]

        self.edit(family["b"], remove)
        self.refused(tmp_path, family, r"model 'b': .*: config\.json says 3 blocks, the weights have 2")

    @pytest.mark.usefixtures("no_reading")
    def test_shapes_that_differ(self, tmp_path: Path, family: Family) -> None:
        self.edit(family["b"], lambda tensors: tensors.update({"model.norm.weight": torch.ones(15)}))
        self.refused(tmp_path, family, r"model\.norm\.weight: \[15\] in model 'b' and \[16\] in 'a'")

    @pytest.mark.usefixtures("no_reading")
    def test_types_that_cannot_be_merged(self, tmp_path: Path, family: Family) -> None:
        self.edit(family["b"], lambda tensors: tensors.update({"model.norm.weight": torch.ones(16, dtype=torch.int8)}))
        self.refused(tmp_path, family, r"model\.norm\.weight: element type I8 cannot be merged")

    @pytest.mark.usefixtures("no_reading")
    def test_quantised_weights(self, tmp_path: Path, family: Family) -> None:
        path = Path(family["b"].source) / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "x"}}))
        self.refused(tmp_path, family, r"model 'b': .*: its weights are quantised \(x\), and there is no way")

    @pytest.mark.usefixtures("no_reading")
    def test_a_range_beyond_the_model(self, tmp_path: Path, family: Family) -> None:
        data = {
            "merge_method": "linear",
            "slices": [{"sources": [{"model": "a", "layer_range": [1, 5]}]}],
            "parameters": {"weight": 1},
        }
        self.refused(tmp_path, family, r"layer_range: \[1, 5\] goes beyond the 3 blocks of model 'a'", data)

    @pytest.mark.usefixtures("no_reading")
    def test_parameters_that_are_missing_or_cancel(self, tmp_path: Path, family: Family) -> None:
        self.refused(tmp_path, family, "no parameter 'weight' of model 'a'", document("linear", "a", "b"))
        data = document("linear", "a", "b", weight={"filter": "mlp", "value": 1})
        self.refused(tmp_path, family, r"model\.embed_tokens\.weight: no parameter 'weight'", data)
        data = document("linear", "a", "b", weight=1)
        data["models"][0]["parameters"] = {"weight": -1}
        self.refused(tmp_path, family, "sum to zero", data)

    def test_a_truncated_shard(self, tmp_path: Path, family: Family) -> None:
        file = Path(family["b"].source) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        self.refused(tmp_path, family, r"model 'b': .*model\.safetensors: truncated")

    def test_one_flipped_bit(self, tmp_path: Path, family: Family) -> None:
        source = tmp_path / "sealed"
        with replace_folder(source) as new:
            for path in Path(family["b"].source).iterdir():
                (new / path.name).write_bytes(path.read_bytes())
        content = bytearray((source / "model.safetensors").read_bytes())
        content[-5] ^= 1
        (source / "model.safetensors").write_bytes(content)
        family["b"] = ModelSource(source=str(source))
        with pytest.raises(IntegrityError, match=r"model\.safetensors: BLAKE3 is"):
            merge(DOCUMENTS["linear"], tmp_path / "out", family)

    @pytest.mark.parametrize("method", sorted(DOCUMENTS))
    def test_nan(self, tmp_path: Path, family: Family, method: str) -> None:
        def spoil(tensors: dict[str, torch.Tensor]) -> None:
            tensors["model.norm.weight"][3] = float("nan")

        self.edit(family["b"], spoil)
        self.refused(tmp_path, family, r"model\.norm\.weight: .*not finite in BF16", DOCUMENTS[method])

    def test_overflow(self, tmp_path: Path, family: Family) -> None:
        self.edit(family["b"], lambda tensors: tensors["model.norm.weight"].fill_(1e9))
        data = {**DOCUMENTS["linear"], "out_dtype": "float16"}
        self.refused(tmp_path, family, r"not finite in F16: .*out_dtype: float32", data)

    def test_a_shard_outside_of_its_folder(self, tmp_path: Path, family: Family) -> None:
        folder = Path(family["b"].source)
        (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
        index = {"weight_map": dict.fromkeys(load_file(tmp_path / "outside.safetensors"), "../outside.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        self.refused(tmp_path, family, "model 'b': .*a shard lies beside its index")

    def test_an_output_that_cannot_be_written(self, tmp_path: Path, family: Family) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointError, match="file: is a file; a folder was to be written"):
            merge(DOCUMENTS["linear"], tmp_path / "file", family)
