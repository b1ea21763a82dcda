"""The pipeline makes a fused model of another task, from extract to package: params.yaml alone chooses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mango.errors import ConfigError
from mango.fusion import MolForImageTextToText
from mango.packaging import verify_package
from stages.params import load_params
from tests.pipeline.tasks import STAGES, make, run, units

TASK = "image-text-to-text"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_reads_images_from_extract_to_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MANGO_TRACKING", "off"), ("MANGO_DEVICE", "cpu"), ("MANGO_THREADS", "1")):
        monkeypatch.setenv(name, value)
    make(tmp_path, TASK)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        assert list(run(tmp_path)) == list(STAGES)
    assert units(tmp_path) == "bits_per_byte"
    package = tmp_path / "models" / "package"
    assert verify_package(package).metric.name == "fused_hard.switching"
    assert "AutoModelForImageTextToText" in (package / "README.md").read_text()
    model = AutoModelForImageTextToText.from_pretrained(package)
    assert isinstance(model, MolForImageTextToText)
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[5, 1, 1, 1, 1, 6]])
    with torch.no_grad():
        logits = [model(input_ids=ids, pixel_values=pixels).logits for pixels in (image, image + 1)]
    assert not logits[0].equal(logits[1])


def test_a_metric_that_a_task_does_not_have_is_refused_at_once(tmp_path: Path) -> None:
    make(tmp_path, "seq2seq-lm")
    with pytest.raises(ConfigError, match=r"package\.metric: 'fused_hard\.switching' is not measured for .*seq2seq-lm"):
        load_params(tmp_path / "params.yaml", overrides=["package.metric=fused_hard.switching"])
    assert load_params(tmp_path / "params.yaml").package.metric is None
