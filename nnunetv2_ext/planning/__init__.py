"""Memory of a training step, and plans for the network that will be trained."""
