"""The one list of what this package holds: trainers, as data. Importing it imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

__all__ = ["AUTHORS_SYSTEMS", "BASELINE", "TRAINERS", "TrainerEntry"]


@dataclass(frozen=True)
class TrainerEntry:
    """One trainer.

    Attributes:
        name: class name, which users type after `-tr`; it ends up in folders and checkpoints and never changes.
        module: where the class is defined.
        method: the method's name.
        paper: who described it.
        dims: the dimensions that it serves.
        deep_supervision: whether the loss looks at auxiliary heads too.
        checked_against: what its network was compared with.
        authors_system: the reference system (a key of `AUTHORS_SYSTEMS`) whose checkpoints its network takes.
        imagenet: whether training starts from published ImageNet weights.
        self_supervised: whether training starts from published self-supervised weights.
    """

    name: str
    module: str
    method: str
    paper: str
    dims: tuple[int, ...]
    deep_supervision: bool
    checked_against: str
    authors_system: str | None = None
    imagenet: bool = False
    self_supervised: bool = False

    @property
    def pretrained(self) -> bool:
        """Whether training starts from published weights; the name ends in `_pretrained` then."""
        return self.imagenet or self.self_supervised


_PECA_NET = partial(
    TrainerEntry,
    module="nnunetv2_ext.trainers.peca_net",
    paper="Chen, Xie, Lu: PECA-Net",
    dims=(2, 3),
    checked_against="the authors' code: 10 golden files",
    authors_system="peca_net",
)

_DCA_UNETS = partial(
    TrainerEntry,
    module="nnunetv2_ext.trainers.dca_unets",
    paper="Ates, Mohan, Celik: Dual Cross-Attention",
    dims=(2, 3),
    deep_supervision=True,
    authors_system="dca_unets",
)
_PLAIN = partial(_DCA_UNETS, checked_against="the authors' code: 1 golden file")
_WITH_DCA = partial(_DCA_UNETS, checked_against="the authors' code: 2 golden files")

_SWIN_UNETR = partial(
    TrainerEntry,
    module="nnunetv2_ext.trainers.swin_unetr",
    deep_supervision=False,
    checked_against="the authors' code and MONAI: 9 golden files",
    authors_system="reca_swinunetr",
)
_NNFORMER = partial(
    TrainerEntry,
    module="nnunetv2_ext.trainers.nnformer",
    dims=(2, 3),
    checked_against="the authors' code: 10 golden files",
    authors_system="reca_nnformer",
)
_SWIN_UNET = partial(
    TrainerEntry,
    module="nnunetv2_ext.trainers.swin_unet",
    dims=(2,),
    deep_supervision=False,
    checked_against="the authors' code: 4 golden files",
    authors_system="reca_swinunet",
)
_DA_TRANSUNET = partial(
    TrainerEntry,
    module="nnunetv2_ext.trainers.da_transunet",
    dims=(2,),
    deep_supervision=False,
    checked_against="the authors' code: 9 golden files",
    authors_system="reca_datransunet",
)
_RECA = "Recurrent-Attention (RecA)"
_DANIE = partial(
    TrainerEntry,
    module="nnunetv2_ext.trainers.danie",
    paper="Li, Tu, Gong, Zhong, Li: DANIE",
    dims=(2,),
    checked_against="the paper's equations and cost; its authors published no code",
)

TRAINERS: tuple[TrainerEntry, ...] = (
    _PECA_NET("nnUNetTrainerPECANet", method="PECA-Net", deep_supervision=False),
    _PECA_NET("nnUNetTrainerPECANetDS", method="PECA-Net with auxiliary heads", deep_supervision=True),
    TrainerEntry(
        "nnUNetTrainerDCA",
        module="nnunetv2_ext.trainers.dca",
        method="DCA on the planned network",
        paper="Ates, Mohan, Celik: Dual Cross-Attention",
        dims=(2, 3),
        deep_supervision=True,
        checked_against="the authors' code: 11 golden files of the module",
        authors_system="dca",
    ),
    _PLAIN("nnUNetTrainerUNet", method="U-Net"),
    _WITH_DCA("nnUNetTrainerDCAUNet", method="U-Net with DCA"),
    _PLAIN("nnUNetTrainerVNet", method="V-Net"),
    _WITH_DCA("nnUNetTrainerDCAVNet", method="V-Net with DCA"),
    _PLAIN("nnUNetTrainerR2UNet", method="R2U-Net"),
    _WITH_DCA("nnUNetTrainerDCAR2UNet", method="R2U-Net with DCA"),
    _PLAIN("nnUNetTrainerResUNetPP", method="ResUNet++"),
    _WITH_DCA("nnUNetTrainerDCAResUNetPP", method="ResUNet++ with DCA"),
    _PLAIN("nnUNetTrainerDoubleUNet", method="DoubleU-Net"),
    _WITH_DCA("nnUNetTrainerDCADoubleUNet", method="DoubleU-Net with DCA"),
    _PLAIN("nnUNetTrainerMultiResUNet", method="MultiResUNet"),
    _WITH_DCA("nnUNetTrainerDCAMultiResUNet", method="MultiResUNet with DCA"),
    _SWIN_UNETR("nnUNetTrainerSwinUNETR", method="SwinUNETR", paper="Hatamizadeh et al.: Swin UNETR", dims=(2, 3)),
    _SWIN_UNETR("nnUNetTrainerSwinUNETRRecA", method="SwinUNETR with RecA", paper=_RECA, dims=(2, 3)),
    _NNFORMER(
        "nnUNetTrainerNNFormer",
        method="nnFormer",
        paper="Zhou et al.: nnFormer",
        deep_supervision=False,
    ),
    _NNFORMER(
        "nnUNetTrainerNNFormerRecA",
        method="nnFormer with RecA",
        paper=_RECA,
        deep_supervision=False,
    ),
    _NNFORMER(
        "nnUNetTrainerNNFormerDS",
        method="nnFormer with auxiliary heads",
        paper="Zhou et al.: nnFormer",
        deep_supervision=True,
    ),
    _NNFORMER(
        "nnUNetTrainerNNFormerRecADS",
        method="nnFormer with RecA and auxiliary heads",
        paper=_RECA,
        deep_supervision=True,
    ),
    _SWIN_UNET("nnUNetTrainerSwinUNet", method="Swin-Unet", paper="Cao et al.: Swin-Unet"),
    _SWIN_UNET("nnUNetTrainerSwinUNetRecA", method="Swin-Unet with RecA", paper=_RECA),
    _DA_TRANSUNET("nnUNetTrainerDATransUNet", method="DA-TransUNet", paper="Sun et al.: DA-TransUNet"),
    _DA_TRANSUNET("nnUNetTrainerDATransUNetRecA", method="DA-TransUNet with RecA", paper=_RECA),
    _SWIN_UNET(
        "nnUNetTrainerSwinUNet_pretrained",
        method="Swin-Unet from ImageNet weights",
        paper="Cao et al.: Swin-Unet",
        imagenet=True,
    ),
    _SWIN_UNET(
        "nnUNetTrainerSwinUNetRecA_pretrained",
        method="Swin-Unet with RecA from ImageNet weights",
        paper=_RECA,
        imagenet=True,
    ),
    _DA_TRANSUNET(
        "nnUNetTrainerDATransUNet_pretrained",
        method="DA-TransUNet from ImageNet weights",
        paper="Sun et al.: DA-TransUNet",
        imagenet=True,
    ),
    _DA_TRANSUNET(
        "nnUNetTrainerDATransUNetRecA_pretrained",
        method="DA-TransUNet with RecA from ImageNet weights",
        paper=_RECA,
        imagenet=True,
    ),
    _SWIN_UNETR(
        "nnUNetTrainerSwinUNETR_pretrained",
        method="SwinUNETR from self-supervised weights",
        paper="Tang et al.: Self-supervised pre-training of Swin transformers",
        dims=(3,),
        self_supervised=True,
    ),
    _SWIN_UNETR(
        "nnUNetTrainerSwinUNETRRecA_pretrained",
        method="SwinUNETR with RecA, self-supervised",
        paper=_RECA,
        dims=(3,),
        self_supervised=True,
    ),
    _DANIE("nnUNetTrainerDANIE_S", method="DANIE-S", deep_supervision=False),
    _DANIE("nnUNetTrainerDANIE_L", method="DANIE-L", deep_supervision=False),
    _DANIE("nnUNetTrainerDANIE_SDS", method="DANIE-S, each map supervised", deep_supervision=True),
    _DANIE("nnUNetTrainerDANIE_LDS", method="DANIE-L, each map supervised", deep_supervision=True),
    _DANIE(
        "nnUNetTrainerDANIE_S_pretrained",
        method="DANIE-S from ImageNet weights",
        deep_supervision=False,
        imagenet=True,
    ),
    _DANIE(
        "nnUNetTrainerDANIE_L_pretrained",
        method="DANIE-L from ImageNet weights",
        deep_supervision=False,
        imagenet=True,
    ),
)

# nnU-Net's own trainer, for which variants exist too: a fair comparison needs the same length and batch size.
BASELINE = TrainerEntry(
    "nnUNetTrainer",
    module="nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    method="nnU-Net's own",
    paper="Isensee et al.: nnU-Net",
    dims=(2, 3),
    deep_supervision=True,
    checked_against="itself",
)

# Reference systems of `weights.from_authors`, and the module that knows each one's settings and tensor names.
AUTHORS_SYSTEMS: dict[str, str] = {
    "dca": "nnunetv2_ext.weights.dca",
    "dca_unets": "nnunetv2_ext.weights.dca_unets",
    "peca_net": "nnunetv2_ext.weights.peca_net",
    "reca_datransunet": "nnunetv2_ext.weights.da_transunet",
    "reca_nnformer": "nnunetv2_ext.weights.nnformer",
    "reca_swinunet": "nnunetv2_ext.weights.swin_unet",
    "reca_swinunetr": "nnunetv2_ext.weights.swin_unetr",
}
