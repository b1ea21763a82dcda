"""The built-in merge methods: importing this package registers them."""

from __future__ import annotations

from mango.merging.methods.adamerging import AdamergingParams, AdamergingPpParams, adamerging, adamerging_pp
from mango.merging.methods.arcee_fusion import ArceeFusionParams, arcee_fusion
from mango.merging.methods.breadcrumbs import BreadcrumbsParams, breadcrumbs, breadcrumbs_ties
from mango.merging.methods.dare import DareParams, dare_linear, dare_ties
from mango.merging.methods.della import DellaLinearParams, DellaParams, della, della_linear
from mango.merging.methods.emr import EmrParams, EmrParts, emr, emr_parts
from mango.merging.methods.fisher import FisherParams, fisher
from mango.merging.methods.linear import LinearParams, linear
from mango.merging.methods.magmax import MagmaxParams, magmax
from mango.merging.methods.model_stock import ModelStockParams, model_stock
from mango.merging.methods.nearswap import NearswapParams, nearswap
from mango.merging.methods.nuslerp import NuslerpParams, nuslerp
from mango.merging.methods.passthrough import PassthroughParams, passthrough
from mango.merging.methods.ram import RamParams, RamplusTlParams, ram, ramplus_tl
from mango.merging.methods.regmean import RegmeanParams, regmean
from mango.merging.methods.sce import SceParams, sce
from mango.merging.methods.slerp import SlerpParams, slerp
from mango.merging.methods.spectral import IsoCParams, IsoCtsParams, TsvParams, iso_c, iso_cts, tsv
from mango.merging.methods.spheres import KarcherParams, MultislerpParams, karcher, multislerp
from mango.merging.methods.task_arithmetic import TaskArithmeticParams, task_arithmetic
from mango.merging.methods.ties import TiesParams, ties

__all__ = [
    "AdamergingParams",
    "AdamergingPpParams",
    "ArceeFusionParams",
    "BreadcrumbsParams",
    "DareParams",
    "DellaLinearParams",
    "DellaParams",
    "EmrParams",
    "EmrParts",
    "FisherParams",
    "IsoCParams",
    "IsoCtsParams",
    "KarcherParams",
    "LinearParams",
    "MagmaxParams",
    "ModelStockParams",
    "MultislerpParams",
    "NearswapParams",
    "NuslerpParams",
    "PassthroughParams",
    "RamParams",
    "RamplusTlParams",
    "RegmeanParams",
    "SceParams",
    "SlerpParams",
    "TaskArithmeticParams",
    "TiesParams",
    "TsvParams",
    "adamerging",
    "adamerging_pp",
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "emr",
    "emr_parts",
    "fisher",
    "iso_c",
    "iso_cts",
    "karcher",
    "linear",
    "magmax",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "passthrough",
    "ram",
    "ramplus_tl",
    "regmean",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
    "tsv",
]
