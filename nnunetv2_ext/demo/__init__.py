"""A complete run of the stock commands on a phantom, small enough for a laptop."""
