"""The corpus: reading its splits, packing documents into sequences, text that switches domain."""

from __future__ import annotations

from mango.corpus.examples import Examples, examples
from mango.corpus.images import ImageReader, image_examples
from mango.corpus.packing import pack
from mango.corpus.params import CorpusParams
from mango.corpus.predictions import mistakes, predictions, regrets
from mango.corpus.reading import COLUMNS, SPLITS, corpus_sha256, read_split, split_path
from mango.corpus.scoring import token_losses
from mango.corpus.sequences import Sequences, concatenate
from mango.corpus.switching import switching
from mango.corpus.token_bytes import token_bytes, tokenize
from mango.corpus.verification import verify_corpus

__all__ = [
    "COLUMNS",
    "SPLITS",
    "CorpusParams",
    "Examples",
    "ImageReader",
    "Sequences",
    "concatenate",
    "corpus_sha256",
    "examples",
    "image_examples",
    "mistakes",
    "pack",
    "predictions",
    "read_split",
    "regrets",
    "split_path",
    "switching",
    "token_bytes",
    "token_losses",
    "tokenize",
    "verify_corpus",
]
