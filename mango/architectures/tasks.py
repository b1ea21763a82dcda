"""What a model is for: which Auto class builds it, and which family it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

from mango.config import near
from mango.errors import ArchitectureError, UnknownNameError

Family = Literal["causal", "masked", "seq2seq", "text", "vision", "multimodal", "audio", "other"]


@dataclass(frozen=True)
class Task:
    """A kind of head.

    Args:
        name: what ``describe(config, task=...)`` and the tables call it.
        mapping: the table of classes in ``transformers.models.auto.modeling_auto``.
        family: what its models are, or None where that depends on what they read.
    """

    name: str
    mapping: str
    family: Family | None


CAUSAL = "causal-lm"
MASKED = "masked-lm"
SEQ2SEQ = "seq2seq-lm"
IMAGE_TEXT = "image-text-to-text"
BASE = "base"

# In the order in which a configuration's task is looked for, when nothing says which is meant.
_TASKS = (
    Task(CAUSAL, "MODEL_FOR_CAUSAL_LM_MAPPING", "causal"),
    Task(SEQ2SEQ, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "seq2seq"),
    Task(MASKED, "MODEL_FOR_MASKED_LM_MAPPING", "masked"),
    Task(IMAGE_TEXT, "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "multimodal"),
    Task("multimodal-lm", "MODEL_FOR_MULTIMODAL_LM_MAPPING", "multimodal"),
    Task("speech-seq2seq", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING", "audio"),
    Task("ctc", "MODEL_FOR_CTC_MAPPING", "audio"),
    Task("zero-shot-image-classification", "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING", "multimodal"),
    Task("image-classification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "vision"),
    Task("audio-classification", "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING", "audio"),
    Task("video-classification", "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING", "vision"),
    Task("object-detection", "MODEL_FOR_OBJECT_DETECTION_MAPPING", "vision"),
    Task("semantic-segmentation", "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING", "vision"),
    Task("universal-segmentation", "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING", "vision"),
    Task("depth-estimation", "MODEL_FOR_DEPTH_ESTIMATION_MAPPING", "vision"),
    Task("mask-generation", "MODEL_FOR_MASK_GENERATION_MAPPING", "vision"),
    Task("masked-image-modeling", "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING", "vision"),
    Task("question-answering", "MODEL_FOR_QUESTION_ANSWERING_MAPPING", "text"),
    Task("sequence-classification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING", "text"),
    Task("time-series", "MODEL_FOR_TIME_SERIES_PREDICTION_MAPPING", "other"),
    Task(BASE, "MODEL_MAPPING", None),
    Task("text-to-waveform", "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING", "audio"),
    Task("text-to-spectrogram", "MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING", "audio"),
    Task("pretraining", "MODEL_FOR_PRETRAINING_MAPPING", None),
    Task("zero-shot-object-detection", "MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING", "multimodal"),
    Task("retrieval", "MODEL_FOR_RETRIEVAL_MAPPING", "multimodal"),
    Task("keypoint-detection", "MODEL_FOR_KEYPOINT_DETECTION_MAPPING", "vision"),
    Task("keypoint-matching", "MODEL_FOR_KEYPOINT_MATCHING_MAPPING", "vision"),
    Task("image-to-image", "MODEL_FOR_IMAGE_TO_IMAGE_MAPPING", "vision"),
    Task("backbone", "MODEL_FOR_BACKBONE_MAPPING", "vision"),
)
TASKS = {task.name: task for task in _TASKS}


def class_for(config: PretrainedConfig, task: str) -> Any | None:
    """Return the class that a task builds from a configuration, or None where ``transformers`` has none.

    Args:
        config: the configuration.
        task: name of the task.

    Raises:
        UnknownNameError: there is no such task.
    """
    if task not in TASKS:
        hint = near(task, list(TASKS)) or "."
        raise UnknownNameError(f"unknown task {task!r}{hint} Known: {', '.join(TASKS)}")
    mapping = getattr(modeling_auto, TASKS[task].mapping, None)
    if mapping is None:  # a release of transformers without this kind of head
        return None
    try:
        found = mapping.get(type(config), None)
    except (ImportError, AttributeError, ValueError):  # the class needs a package that is not installed
        return None
    found = found[0] if isinstance(found, (tuple, list)) else found
    return _part_of(config, TASKS[task].mapping) if found is None else found


def _part_of(config: PretrainedConfig, mapping: str) -> Any | None:
    """Return the class that a configuration of one part of a model names, where the table knows it by the whole."""
    named = set(getattr(config, "architectures", None) or ())
    for model_type, name in getattr(modeling_auto, f"{mapping}_NAMES", {}).items():
        if isinstance(name, str) and name in named and model_type != config.model_type:
            found = getattr(modeling_auto, mapping)._load_attr_from_module(model_type, name)
            if getattr(found, "config_class", None) is type(config):
                return found
    return None


def task_of(config: PretrainedConfig) -> str:
    """Return the task that a configuration is for.

    The class that ``config.architectures`` names decides; else whether it is an encoder and decoder, and else the
    first kind of head that there is for it, where masked language models that are no decoders come before causal ones.

    Args:
        config: configuration of any model.

    Raises:
        ArchitectureError: ``transformers`` has no model for it.
    """
    named = set(getattr(config, "architectures", None) or ())
    available = [task for task in TASKS if class_for(config, task) is not None]
    if not available:
        raise ArchitectureError(
            f"{getattr(config, 'name_or_path', '') or 'this configuration'} (model type {config.model_type!r}): "
            "transformers has no model class for it; it may describe a part of another model"
        )
    matching = [
        task
        for task in available
        if task != BASE and class_for(config, task).__name__ in named  # type: ignore[union-attr]
    ]
    if {CAUSAL, MASKED} <= set(matching) and not any(getattr(config, n, False) for n in ("is_decoder", "causal")):
        return MASKED  # one class for both
    if matching:
        return matching[0]
    if bool(getattr(config, "is_encoder_decoder", False)):
        for task in (SEQ2SEQ, "speech-seq2seq"):
            if task in available:
                return task
    if MASKED in available and not getattr(config, "is_decoder", False):
        return MASKED
    return available[0]


def build_class(config: PretrainedConfig, task: str) -> tuple[Any, PretrainedConfig] | None:
    """Return the class that a task builds and the configuration that it takes, or None where there is none.

    A class that wants the text part of a configuration of several parts gets that part, as the Auto classes do it.

    Args:
        config: the configuration.
        task: name of the task.
    """
    found = class_for(config, task)
    if found is None:
        return None
    text_class = config.sub_configs.get("text_config", None)
    if text_class is not None and getattr(found, "config_class", None) == text_class:
        return found, config.get_text_config()
    return found, config
