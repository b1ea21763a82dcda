"""Every error that Mango raises on purpose.

A message says where, what was found, what was wanted, and what to do. The command line prints that one line and
exits with 2; ``--debug`` shows the traceback.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Return text whose control characters, which could command a terminal, are shown as escapes; lines stay lines."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape", "backslashreplace").decode() for c in text
    )


class MangoError(Exception):
    """Base of all errors that a user can act on; a message that quotes a stranger's words cannot command a terminal."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(MangoError, ValueError):
    """A configuration, document or option is wrong; the message lists every problem found."""


class UnknownNameError(MangoError, KeyError):
    """A name is in no registry; the message lists near names and all known ones."""

    def __str__(self) -> str:
        return printable(str(self.args[0])) if self.args else ""


class CheckpointError(MangoError):
    """A model folder or weight file cannot be read or written."""


class UnsafeFileError(CheckpointError):
    """A file asks for something that a model file must not do."""


class IntegrityError(CheckpointError):
    """Bytes differ from the hash that the manifest gives for them."""


class ArchitectureError(MangoError):
    """A model's blocks cannot be found or used."""


class IncompatibleBlocksError(ArchitectureError):
    """Models do not fit together: tokenizers, widths or extents."""


class MergeError(MangoError):
    """A merge cannot be done."""


class DataError(MangoError):
    """A corpus is missing, empty or malformed."""


class TrainingError(MangoError):
    """Training cannot start or go on."""


class EvaluationError(MangoError):
    """An evaluation cannot be computed."""


class GateError(MangoError):
    """A data gate failed; the message names the page that says which rows and why."""


class PackagingError(MangoError):
    """A package cannot be built, verified or opened."""


class RegistryError(MangoError):
    """The model registry refused or cannot do what was asked."""


class ServingError(MangoError):
    """A packaged model cannot be served."""
