"""Images in a corpus: read as the model wants them, or refused with the row."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mango.corpus import CorpusParams, ImageReader, image_examples
from mango.errors import CheckpointError, DataError
from mango.gates import GateParams, run_corpus_gate

ROOT = Path(__file__).parents[2]
READER = ImageReader((0.5,), (0.25,))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "corpus"
    subprocess.run([sys.executable, "data/build_digits.py", "--out", str(out)], check=True, cwd=ROOT)
    return out


def test_pixels_are_scaled_as_the_model_wants_them() -> None:
    found = READER.pixels("P2\n2 1\n4\n0 4\n", "here")
    assert found.tolist() == [[[-2.0, 2.0]]]
    colours = ImageReader((0.0,) * 3, (1.0,) * 3).pixels("P3 1 1 2 0 1 2", "here")
    assert colours.tolist() == [[[0.0]], [[0.5]], [[1.0]]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a cat", "here: is no image in the plain Netpbm format"),
        ("P2 2 2 9 1 2 3", "here: is no image .*3 values"),
        ("P2 1 1 9 10", "here: is no image"),
        ("P3 1 1 9 1 2 3", "here: has 3 channels, and the model wants 1"),
    ],
)
def test_what_is_no_image(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        READER.pixels(text, "here")


def test_the_digits_pass_the_gate_and_are_read(digits: Path, tmp_path: Path) -> None:
    corpus = CorpusParams(path=digits)
    assert run_corpus_gate(corpus, GateParams(), tmp_path).passed
    found = image_examples(corpus, "test", READER, per_domain=20, seed=0, evaluated=True)
    assert found.domains == ("high", "low")
    assert found.inputs["pixel_values"].shape == (40, 1, 8, 8)
    assert bool((found.of("low").inputs["labels"] < 5).all())
    assert bool((found.of("high").inputs["labels"] >= 5).all())
    assert len({tuple(image.flatten().tolist()) for image in found.inputs["pixel_values"]}) == 40
    again = image_examples(corpus, "test", READER, per_domain=20, seed=0, evaluated=True)
    assert again.inputs["pixel_values"].equal(found.inputs["pixel_values"])
    assert torch.isfinite(found.inputs["pixel_values"]).all()


def test_images_without_classes(digits: Path, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        pq.write_table(
            pq.read_table(digits / f"{split}.parquet").drop_columns(["label"]), tmp_path / f"{split}.parquet"
        )
    with pytest.raises(DataError, match=r"test\.parquet: missing column label"):
        image_examples(CorpusParams(path=tmp_path), "test", READER, per_domain=2, seed=0)
    table = pq.read_table(digits / "test.parquet").drop_columns(["label"])
    table = table.append_column("label", pa.array(["seven"] * len(table)))
    pq.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(DataError, match="column label holds something else than numbers"):
        image_examples(CorpusParams(path=tmp_path), "test", READER, per_domain=2, seed=0)


def test_a_model_that_does_not_say_how_it_wants_its_pixels(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: missing"):
        ImageReader.of(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": 0.5}')
    with pytest.raises(CheckpointError, match="wanted lists of numbers in image_mean and image_std"):
        ImageReader.of(tmp_path)
