"""Pairs of an image and a text: a folder with an index, as the imagefolder of `datasets` has it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mango.checkpoints.opening import open_processor
from mango.corpus.params import ImagePairParams
from mango.errors import DataError

COLUMNS = ("file_name", "text")
INDEXES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Pair:
    """An image and what is said of it.

    Args:
        image: the image file.
        text: the text.
    """

    image: Path
    text: str


def read_pairs(folder: Path) -> list[Pair]:
    """Return the pairs of a folder, in the order of its index.

    Args:
        folder: has ``metadata.jsonl`` or ``metadata.csv`` with the columns ``file_name`` (below the folder) and
            ``text``.

    Raises:
        DataError: there is no index, a column or an image is missing, a text is empty, or a name leads out.
    """
    found = [folder / name for name in INDEXES if (folder / name).is_file()]
    if len(found) != 1:
        has = " and ".join(path.name for path in found) or "neither"
        raise DataError(f"{folder}: wanted one index, {' or '.join(INDEXES)}, found {has}")
    (index,) = found
    pairs: list[Pair] = []
    for number, row in enumerate(_rows(index), start=1):
        where = f"{index}: entry {number}"
        for column in COLUMNS:
            if column not in row:
                raise DataError(
                    f"{where}: missing column {column}; it has {', '.join(map(str, sorted(row))) or 'none'}"
                )
            if not isinstance(row[column], str) or not row[column].strip():
                raise DataError(f"{where}: {column} is {row[column]!r}, wanted a text")
        image = folder / row["file_name"]
        if not image.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{where}: {row['file_name']!r} leads out of {folder}")
        if not image.is_file():
            raise DataError(f"{where}: image {image} is missing")
        pairs.append(Pair(image, row["text"]))
    if len(pairs) < 2:
        raise DataError(f"{index}: has {len(pairs)} pairs, wanted at least two")
    return pairs


def _rows(index: Path) -> list[dict[str, Any]]:
    try:
        text = index.read_text(encoding="utf-8-sig")
        if index.suffix == ".csv":
            return [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)]
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{index}: cannot be read as {index.suffix[1:]} in UTF-8 ({error})") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{index}: entry {number} is no object with {' and '.join(COLUMNS)}")
    return rows


class PairReader:
    """Turns pairs into what a model that reads images takes, by the model's own processor.

    Args:
        folder: the model's folder.
        prompt: text before a pair's own; ``{image}`` stands for the image.

    Raises:
        DataError: the folder has no processor of images and text, or the prompt has no image.
        CheckpointError: the processor cannot be opened.
    """

    def __init__(self, folder: Path, prompt: str) -> None:
        self.processor = open_processor(folder)
        if (
            getattr(self.processor, "image_processor", None) is None
            or getattr(self.processor, "tokenizer", None) is None
        ):
            raise DataError(
                f"{folder}: holds a {type(self.processor).__name__}, no processor of images and text; put the "
                "model's own processor_config.json and preprocessor_config.json there"
            )
        token = getattr(self.processor, "boi_token", None) or getattr(self.processor, "image_token", None)
        if not isinstance(token, str) or prompt.count("{image}") != 1:
            raise DataError(
                f"corpus.images.prompt: {prompt!r}, wanted one {{image}}, which {token!r} takes the place of"
            )
        self.prompt = prompt.replace("{image}", token)

    def read(self, image: Path, text: str) -> tuple[dict[str, Tensor], int]:
        """Return what a model takes of one pair, and how many tokens at its end are the text's.

        Args:
            image: the image file.
            text: what follows the prompt.

        Raises:
            DataError: the image is broken.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(image) as opened:
                picture = opened.convert("RGB")
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{image}: is no image that can be read ({error})") from error
        inputs = dict(self.processor(images=picture, text=self.prompt, return_tensors="pt"))
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise DataError(f"{image}: its text {text!r} has no tokens")
        shape = inputs["input_ids"].shape
        fill = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.shape == shape:
                new = fill.get(name, torch.zeros(1, len(ids), dtype=value.dtype)).to(value.dtype)
                inputs[name] = torch.cat([value, new], 1)
        return inputs, len(ids)


def open_pairs(params: ImagePairParams, folder: Path) -> tuple[list[Pair], PairReader]:
    """Return the pairs that an evaluation looks at, and what reads them.

    Args:
        params: where they are; its `path` is given.
        folder: of the model that reads images.

    Raises:
        DataError: pairs or processor are wrong.
    """
    assert params.path is not None
    return read_pairs(params.path)[: params.limit], PairReader(folder, params.prompt)
