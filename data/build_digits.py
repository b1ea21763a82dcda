"""Build a small corpus of images: 1,797 handwritten digits of 8 x 8 pixels, which scikit-learn ships.

    python data/build_digits.py --out data/digits

Digits 0 to 4 are one domain and 5 to 9 the other. Of each class 60% are for training, 20% for validation and 20% for
the test. Images are text in the plain Netpbm format; identical ones stand in one split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SPLITS = ("train", "train", "train", "validation", "test")
"""Split of every fifth image of a class in turn."""
COLUMNS = ("doc_id", "domain", "text", "source", "licence")


def build(out: Path) -> dict[str, int]:
    """Write the three splits, and return the number of images of each."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    seen: dict[str, str] = {}
    turns = dict.fromkeys(range(10), 0)
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        lines = "\n".join(" ".join(str(int(value)) for value in line) for line in image)
        text, label = f"P2\n8 8\n16\n{lines}\n", int(label)
        if text not in seen:
            seen[text] = SPLITS[turns[label] % len(SPLITS)]
            turns[label] += 1
        rows[seen[text]].append(
            {
                "doc_id": f"digits/{number}", "domain": "low" if label < 5 else "high", "text": text,
                "source": "scikit-learn digits (UCI Optical Recognition of Handwritten Digits, test part)",
                "licence": "CC-BY-4.0", "label": label,
            }
        )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([*((column, pa.string()) for column in COLUMNS), ("label", pa.int64())])
    for split, found in rows.items():
        pq.write_table(pa.Table.from_pylist(found, schema=schema), out / f"{split}.parquet")
    return {split: len(found) for split, found in rows.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/digits"))
    print(build(parser.parse_args().out))
