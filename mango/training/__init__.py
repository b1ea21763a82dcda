"""Training adapters and routers of fused models, how they start, and the controls beside them."""

from mango.training.alignment import Alignment, Proposal, propose_layers
from mango.training.controls import continue_trunk, self_stitch
from mango.training.data import TokenDataset, mixture
from mango.training.fitting import Trained
from mango.training.losses import balance_loss, entropy_loss, supervision_loss, z_loss
from mango.training.params import ControlParams, LossParams, StartParams, TrainParams
from mango.training.run import TRAINING_FILE, Job, calibration_text, prepare, train_all, train_one
from mango.training.starts import StartReport, routing_targets, source_losses, start_adapters, start_routers
from mango.training.trainer import FusedTrainer

__all__ = [
    "TRAINING_FILE",
    "Alignment",
    "ControlParams",
    "FusedTrainer",
    "Job",
    "LossParams",
    "Proposal",
    "StartParams",
    "StartReport",
    "TokenDataset",
    "TrainParams",
    "Trained",
    "balance_loss",
    "calibration_text",
    "continue_trunk",
    "entropy_loss",
    "mixture",
    "prepare",
    "propose_layers",
    "routing_targets",
    "self_stitch",
    "source_losses",
    "start_adapters",
    "start_routers",
    "supervision_loss",
    "train_all",
    "train_one",
    "z_loss",
]
