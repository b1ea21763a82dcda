"""The part of a plan that calibration text has: what is measured on which text, and every error that shows early."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mango.errors import MergeError
from mango.merging.document import MergeDocument
from mango.merging.inputs import Input
from mango.merging.measuring import Measurement, with_statistics
from mango.merging.outputs import COPY, OutputTensor
from mango.merging.registry import MERGERS, Statistic
from mango.merging.running import Runnable, runnable
from mango.merging.sections import CalibrationSection
from mango.merging.texts import CalibrationText, draw_text
from mango.merging.vocabularies import Vocabulary


class Calibration:
    """The calibration of one document: its measurements, made when a tensor first asks for them.

    Args:
        section: what the document says of its text.
        inputs: the models by key, the lead first.
    """

    def __init__(self, section: CalibrationSection, inputs: Mapping[str, Input]) -> None:
        self._section = section
        self._inputs = inputs
        self._known: dict[tuple[Statistic, str], Measurement] = {}
        self._runnables: dict[str, Runnable] = {}
        self._texts: dict[str, CalibrationText] = {}

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """What is measured, in order."""
        return tuple(self._known.values())

    def measurement(self, kind: Statistic, key: str) -> Measurement:
        """Return the measurement of a kind and a model.

        Raises:
            MergeError: the model cannot be run, or there is no text for it.
        """
        if (kind, key) not in self._known:
            if key not in self._runnables:
                model = self._inputs[key]
                one = runnable(model)
                self._texts[key] = text_for(self._section, one, model.vocabulary or self._other_vocabulary(key), key)
                self._runnables[key] = one
            self._known[kind, key] = Measurement(kind, self._runnables[key], self._texts[key])
        return self._known[kind, key]

    def _other_vocabulary(self, key: str) -> Vocabulary:
        found = next((model.vocabulary for model in self._inputs.values() if model.vocabulary is not None), None)
        if found is None:
            raise MergeError(f"model {key!r} has no tokenizer, and no other model has, so text has no tokens")
        return found


def text_for(section: CalibrationSection, one: Runnable, vocabulary: Vocabulary, key: str) -> CalibrationText:
    """Draw the text for a model, and check that the model takes it.

    Args:
        section: how much is drawn, and from where.
        one: the model.
        vocabulary: its tokenizer.
        key: what the document calls it.

    Raises:
        MergeError: there is too little text, a sequence is longer than the model takes, or the vocabulary is larger
            than its embedding.
    """
    if one.max_positions is not None and section.tokens > one.max_positions:
        raise MergeError(
            f"calibration.tokens: {section.tokens} is more than the {one.max_positions} positions of model {key!r}"
        )
    text = draw_text(section, section.of(key), vocabulary)
    if (highest := int(text.input_ids.max())) >= one.num_rows:
        raise MergeError(
            f"model {key!r}: its tokenizer gives id {highest}, and its embedding has {one.num_rows} rows; give it the "
            "tokenizer that it was trained with"
        )
    return text


def calibrated(
    document: MergeDocument, inputs: Mapping[str, Input], tensors: Iterable[OutputTensor]
) -> tuple[tuple[OutputTensor, ...], tuple[Measurement, ...], tuple[str, ...]]:
    """Return the tensors of a merge with the statistics that their methods take, and what has to be measured.

    Args:
        document: what to merge.
        inputs: the models by key, the lead first.
        tensors: the tensors of the result.

    Returns:
        The tensors, the measurements, and what a person should know.

    Raises:
        MergeError: one line for each model that cannot be measured.
    """
    tensors = tuple(tensors)
    needed = {
        (kind, key)
        for output in tensors
        if output.method != COPY and (kind := MERGERS[output.method].statistics) is not None
        for key, _ in output.sources
    }
    if not needed:
        return tensors, (), ()
    assert document.calibration is not None, "a document that measures names its text"
    calibration = Calibration(document.calibration, inputs)
    problems: dict[str, None] = {}
    for kind, key in sorted(needed, key=lambda pair: (list(inputs).index(pair[1]), pair[0])):
        try:
            calibration.measurement(kind, key)
        except MergeError as error:
            problems[str(error)] = None
    if problems:
        raise MergeError("\n".join(problems))
    done = tuple(with_statistics(output, calibration.measurement) for output in tensors)
    averaged = sum(1 for t in done if t.method == "regmean" and t.statistics and not any(t.statistics))
    notes = () if not averaged else (f"regmean: {averaged} tensors of no linear layer are averaged",)
    return done, calibration.measurements, notes
