"""From logits to a segmentation, with one class at a time in memory.

nnU-Net enlarges the logits of all classes to the size of the image at once: 14 classes of a CT of 512 x 512 x 600
voxels are 4.4 GB in half precision, and several times that on the way. Here one class at a time is enlarged and
compared with the best so far. The segmentation is the same, voxel by voxel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

__all__ = ["segment_by_class"]


def segment_by_class(logits: Tensor, properties: dict[str, Any], predictor: nnUNetPredictor) -> np.ndarray:
    """Turn logits into a segmentation of the image that they were predicted for, with one class at a time in memory.

    Args:
        logits: (C, *size after preprocessing), on the CPU.
        properties: what nnU-Net's preprocessing noted of the image.
        predictor: that made the logits.

    Returns:
        Labels (*size of the image), in the axes of the file, as
        `nnunetv2.inference.export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape` gives them.
    """
    from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image

    plans, configuration, labels = predictor.plans_manager, predictor.configuration_manager, predictor.label_manager
    shape = properties["shape_after_cropping_and_before_resampling"]
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    # A 2D plan has no spacing for the first axis: it is left as it is.
    planned = (
        configuration.spacing if len(configuration.spacing) == len(shape) else [spacing[0], *configuration.spacing]
    )
    segmentation, best = torch.zeros(tuple(shape), dtype=torch.int16), None
    for index in range(len(logits)):
        enlarged = configuration.resampling_fn_probabilities(logits[index : index + 1], shape, planned, spacing)
        enlarged = torch.as_tensor(enlarged)[0]
        if labels.has_regions:
            # Later regions are drawn over earlier ones.
            inside = labels.inference_nonlin(enlarged.float()) > 0.5
            segmentation.masked_fill_(inside, labels.regions_class_order[index])
        elif best is None:
            best = enlarged.clone()
        else:
            # Of equal classes the first one stays, as with argmax.
            segmentation.masked_fill_(enlarged > best, index)
            torch.maximum(best, enlarged, out=best)
    kind = np.uint8 if len(labels.foreground_labels) < 255 else np.uint16
    whole = np.zeros(properties["shape_before_cropping"], dtype=kind)
    whole = insert_crop_into_image(whole, segmentation.numpy(), properties["bbox_used_for_cropping"])
    return whole.transpose(plans.transpose_backward)
