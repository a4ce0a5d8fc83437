"""What the networks are: torch only, nothing here imports nnU-Net."""
