"""Whom a shared model owes something: papers to cite, and licences of the weights that its training started from."""

from __future__ import annotations

from typing import Any

from nnunetv2_ext.catalog import BASELINE, TrainerEntry

__all__ = ["citations", "licences_of_start"]

_NNUNET = (
    "Isensee, Jaeger, Kohl, Petersen, Maier-Hein: nnU-Net: a self-configuring method for deep learning-based "
    "biomedical image segmentation. Nature Methods 18, 203-211, 2021."
)
_PACKAGE = "nnunetv2_ext, the package of the network's code: its CITATION.cff."
_DCA = "Ates, Mohan, Celik: Dual Cross-Attention for Medical Image Segmentation. arXiv 2303.17696."
_RECA = "Recurrent-Attention (RecA): the paper of the method, where the name has RecA."
# By the module of a trainer.
_PAPERS: dict[str, tuple[str, ...]] = {
    "peca_net": (
        "Chen, Xie, Lu: PECA-Net: A Hybrid Framework Integrating Paired External and Convolutional Attention for 3D "
        "Medical Image Segmentation.",
    ),
    "dca": (_DCA,),
    "dca_unets": (_DCA,),
    "swin_unetr": (
        "Hatamizadeh et al.: Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images. "
        "arXiv 2201.01266.",
    ),
    "nnformer": ("Zhou et al.: nnFormer. arXiv 2109.03201.",),
    "swin_unet": ("Cao et al.: Swin-Unet. arXiv 2105.05537.",),
    "da_transunet": ("Sun et al.: DA-TransUNet. arXiv 2310.12570.",),
    "danie": (
        "Li, Tu, Gong, Zhong, Li: Dual Attention Encoder with Joint Preservation for Medical Image Segmentation. ECAI "
        "2024, doi 10.3233/FAIA240505.",
    ),
}


def citations(entry: TrainerEntry) -> list[str]:
    """Return what to cite for a model of a trainer."""
    papers = list(_PAPERS.get(entry.module.rpartition(".")[2], ()))
    if "RecA" in entry.name:
        papers.append(_RECA)
    if entry.self_supervised:
        papers.append(
            "Tang et al.: Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis. "
            "arXiv 2111.14791."
        )
    return [*papers, _NNUNET, *([] if entry is BASELINE else [_PACKAGE])]


def licences_of_start(entry: TrainerEntry, trainer: Any, network: Any) -> list[str]:
    """Return the licences of the published weights that a trainer starts from, in sentences.

    Args:
        entry: entry of the catalog.
        trainer: the class.
        network: that was trained.
    """
    if entry.self_supervised:
        return [
            "The encoder started from `model_swinvit.pt` of Project-MONAI/MONAI-extra-test-data (repository under "
            "Apache-2.0), which was trained on public CT without labels, LUNA16 and LIDC-IDRI among them: an overlap "
            "with test data of these collections cannot be ruled out."
        ]
    if entry.imagenet:
        from timm.models import get_pretrained_cfg

        model = trainer.imagenet_weights(network).model
        published: Any = get_pretrained_cfg(model)
        licence = published.license or "no licence that timm states"
        return [
            f"The training started from timm's `{model}` ({licence}), which was trained on ImageNet, whose images are "
            "for non-commercial research."
        ]
    return [
        "The training started from random weights, unless it was given a file with `-pretrained_weights`, which "
        "checkpoints do not tell: name that file's licence here then."
    ]
