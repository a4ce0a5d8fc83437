"""Six U-shaped networks, each with and without dual cross-attention (DCA) on its skip connections."""
