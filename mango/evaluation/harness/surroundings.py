"""What lm-eval does beside its work: it draws bars, prints, warns, and seeds the process's generators."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from mango import console

_TRUNCATED = ("Truncating", "Left truncation applied")
_LOGGER = "lm_eval"


@dataclass
class Heard:
    """What lm-eval warned of while it ran.

    Args:
        truncated: warnings of a prompt that was longer than the model may see, and lost its beginning.
    """

    truncated: int = 0


class _Listener(logging.Handler):
    """Counts warnings of prompts that were cut, and shows errors, which lm-eval only logs."""

    def __init__(self, heard: Heard) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if any(words in message for words in _TRUNCATED):
            self._heard.truncated += 1
        elif record.levelno >= logging.ERROR:
            console.note(f"lm-eval: {message}")


@contextmanager
def contained(seed: int) -> Iterator[Heard]:
    """Run lm-eval from a seed, without traces: the process's generators, loggers and output are as before afterwards.

    What it prints goes to stderr, so that results stay alone on stdout; bars are drawn on a terminal only.

    Args:
        seed: of the generators of Python, NumPy and torch.

    Yields:
        what it warned of, filled in as it runs.
    """
    import numpy as np
    import torch

    heard = Heard()
    logger = logging.getLogger(_LOGGER)
    listener, before = _Listener(heard), (logger.level, logger.propagate)
    python, numpy = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        # Its bootstrap forks, which a process with threads or an accelerator may not survive; alone it draws the same.
        stack.enter_context(patch.dict(os.environ, {"DISABLE_MULTIPROC": "1"}))
        stack.enter_context(redirect_stdout(sys.stderr))
        if not sys.stderr.isatty():
            stack.enter_context(_without_bars())
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        logger.addHandler(listener)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        try:
            yield heard
        finally:
            logger.removeHandler(listener)
            logger.setLevel(before[0])
            logger.propagate = before[1]
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep bars from being drawn, also those that are told to be."""
    from tqdm import tqdm

    draw = tqdm.__init__

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        draw(self, *args, **{**kwargs, "disable": True})

    with patch.object(tqdm, "__init__", silent):
        yield
