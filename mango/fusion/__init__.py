"""Fused models: spans of frozen blocks from several pretrained models, adapters between them, routers that choose."""

from mango.auto import register
from mango.fusion.adapters import Adapter, BottleneckAdapter, LinearAdapter
from mango.fusion.bridge.losses import bridged_losses
from mango.fusion.build import build_fused
from mango.fusion.cache import FusedCache
from mango.fusion.configuration import MolConfig
from mango.fusion.core import MolPreTrainedModel, MolRowModel
from mango.fusion.encoders import MolEncoder, MolForMaskedLM, MolForSentenceEmbedding
from mango.fusion.heads import HEADS
from mango.fusion.image_text import MolForImageTextToText
from mango.fusion.images import MolForImageClassification
from mango.fusion.layout import Expert, Layout, Span, make_layout
from mango.fusion.modeling import MolForCausalLM
from mango.fusion.output import EncoderOutput, MolOutput, Routing
from mango.fusion.params import AdapterParams, ExpertParams, FusionParams, RouterParams, SpanParams
from mango.fusion.pooling import Pool
from mango.fusion.registries import ADAPTERS, ROUTERS
from mango.fusion.routers import Decision, Router, Selection, SimpleRouter, TokenRouter, TopKRouter
from mango.fusion.seq2seq import EncodedSource, MolForSeq2SeqLM

__all__ = [
    "ADAPTERS",
    "HEADS",
    "ROUTERS",
    "Adapter",
    "AdapterParams",
    "BottleneckAdapter",
    "Decision",
    "EncodedSource",
    "EncoderOutput",
    "Expert",
    "ExpertParams",
    "FusedCache",
    "FusionParams",
    "Layout",
    "LinearAdapter",
    "MolConfig",
    "MolEncoder",
    "MolForCausalLM",
    "MolForImageClassification",
    "MolForImageTextToText",
    "MolForMaskedLM",
    "MolForSentenceEmbedding",
    "MolForSeq2SeqLM",
    "MolOutput",
    "MolPreTrainedModel",
    "MolRowModel",
    "Pool",
    "Router",
    "RouterParams",
    "Routing",
    "Selection",
    "SimpleRouter",
    "Span",
    "SpanParams",
    "TokenRouter",
    "TopKRouter",
    "bridged_losses",
    "build_fused",
    "make_layout",
]

register()  # whoever imports the classes may build them through the Auto classes at once
