"""From a trained model and images to segmentations, by torch or by files that need neither torch nor nnU-Net."""
