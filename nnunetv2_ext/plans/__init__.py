"""What nnU-Net planned for a dataset."""
