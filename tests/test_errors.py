"""The error tree is a promise to callers."""

from __future__ import annotations

import inspect

from mango import errors

TREE = {
    "MangoError": ("Exception",),
    "ConfigError": ("MangoError", "ValueError"),
    "UnknownNameError": ("MangoError", "KeyError"),
    "CheckpointError": ("MangoError",),
    "UnsafeFileError": ("CheckpointError",),
    "IntegrityError": ("CheckpointError",),
    "ArchitectureError": ("MangoError",),
    "IncompatibleBlocksError": ("ArchitectureError",),
    "MergeError": ("MangoError",),
    "DataError": ("MangoError",),
    "TrainingError": ("MangoError",),
    "EvaluationError": ("MangoError",),
    "GateError": ("MangoError",),
    "PackagingError": ("MangoError",),
    "RegistryError": ("MangoError",),
    "ServingError": ("MangoError",),
}


def test_the_tree_and_a_docstring_for_each_error() -> None:
    found = dict(inspect.getmembers(errors, inspect.isclass))
    assert {name: tuple(b.__name__ for b in kind.__bases__) for name, kind in found.items()} == TREE
    assert all(kind.__doc__ and kind.__doc__ != kind.__mro__[1].__doc__ for kind in found.values())


def test_a_missing_name_reads_as_a_sentence() -> None:
    assert str(errors.UnknownNameError("unknown router 'x'")) == "unknown router 'x'"
    assert str(errors.UnknownNameError()) == ""


def test_a_quoted_word_cannot_command_a_terminal() -> None:
    hostile = "tensor '\x1b]0;owned\x07\x9b2J\u202e\udcff':\nnext line"
    shown = r"tensor '\x1b]0;owned\x07\x9b2J\u202e\udcff':" + "\nnext line"
    for kind in (errors.CheckpointError, errors.ConfigError, errors.UnknownNameError):
        assert str(kind(hostile)) == shown
    assert errors.printable("Grüße, 你好") == "Grüße, 你好"
