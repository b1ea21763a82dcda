"""Images of a corpus: each is the text of a row in the plain Netpbm format, with its class beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mango.checkpoints import read_json
from mango.corpus.examples import Examples, interleaved
from mango.corpus.params import CorpusParams
from mango.corpus.reading import read_split, split_path
from mango.errors import CheckpointError, DataError

LABEL = "label"
"""Column that holds the class of each image, a number from 0."""
_CHANNELS = {"P2": 1, "P3": 3}


@dataclass(frozen=True)
class ImageReader:
    """How a model wants its pixels: values from 0 to 1, less `mean`, over `std`.

    Args:
        mean: one for each channel.
        std: one for each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, folder: Path) -> ImageReader:
        """Return the reader that a model folder's ``preprocessor_config.json`` describes.

        Args:
            folder: the model folder.

        Raises:
            CheckpointError: there is none, or it has no mean and deviation of the channels.
        """
        path = Path(folder) / "preprocessor_config.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; it says how the model wants its pixels")
        found = read_json(path)
        try:
            mean, std = (tuple(float(v) for v in found[name]) for name in ("image_mean", "image_std"))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: wanted lists of numbers in image_mean and image_std ({error!r})") from error
        if len(mean) != len(std) or not all(std):
            raise CheckpointError(f"{path}: image_mean and image_std do not belong together: {json.dumps([mean, std])}")
        return cls(mean, std)

    def pixels(self, text: str, where: str) -> Tensor:
        """Return an image as a model takes it, float32 ``[channels, height, width]``.

        Args:
            text: the image in the plain Netpbm format (``P2`` or ``P3``).
            where: where it stands, for messages.

        Raises:
            DataError: it is no such image, or has another number of channels.
        """
        kind, *numbers = text.split()
        try:
            width, height, most = (int(number) for number in numbers[:3])
            values = np.array(numbers[3:], dtype=np.float32)
            channels = _CHANNELS[kind]
            if most < 1 or values.size != width * height * channels or not 0 <= values.min() <= values.max() <= most:
                raise ValueError(f"{values.size} values")
        except (KeyError, ValueError) as error:
            raise DataError(f"{where}: is no image in the plain Netpbm format, P2 or P3 ({error})") from error
        if channels != len(self.mean):
            raise DataError(f"{where}: has {channels} channels, and the model wants {len(self.mean)}")
        image = torch.from_numpy(values / most).view(height, width, channels).permute(2, 0, 1)
        mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (self.mean, self.std))
        return (image - mean) / std


def image_examples(
    corpus: CorpusParams, split: str, reader: ImageReader, *, per_domain: int, seed: int, evaluated: bool = False
) -> Examples:
    """Return images with their classes, the domains in turn.

    Args:
        corpus: where the images are; rows have a column ``label`` beside those of every corpus.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        reader: how the model wants its pixels.
        per_domain: images of each domain; domains that have fewer are repeated in training.
        seed: of order and choice.
        evaluated: whether no image may be repeated; every domain gives equally many then.

    Raises:
        DataError: the split is wrong (see `read_split`), an image or a class is none, or images differ in shape.
    """
    path = split_path(corpus.path, split)
    rows = read_split(corpus, split)
    if LABEL not in rows.column_names:
        raise DataError(f"{path}: missing column {LABEL}, the class of each image")
    labels = rows[LABEL]
    if not all(isinstance(label, int) and label >= 0 for label in labels):
        raise DataError(f"{path}: column {LABEL} holds something else than numbers from 0")
    places: dict[str, list[int]] = {}
    for place, domain in enumerate(rows["domain"]):
        places.setdefault(domain, []).append(place)
    domains = tuple(sorted(places))
    count = min(per_domain, *(len(own) for own in places.values())) if evaluated else per_domain
    texts = rows["text"]
    made: list[Examples] = []
    for number, domain in enumerate(domains):
        order = np.random.default_rng([seed, *f"{split}/{domain}".encode()]).permutation(places[domain])
        chosen = [int(order[i % len(order)]) for i in range(count)]
        images = [reader.pixels(texts[place], f"{path}: row {place}") for place in chosen]
        if len({image.shape for image in images}) > 1:
            raise DataError(f"{path}: images of domain {domain!r} differ in height or width")
        inputs = {"pixel_values": torch.stack(images), "labels": torch.tensor([labels[place] for place in chosen])}
        ones = torch.ones(count, dtype=torch.float64)
        made.append(Examples(inputs, ones, torch.full((count,), number), domains))
    return interleaved(made)
