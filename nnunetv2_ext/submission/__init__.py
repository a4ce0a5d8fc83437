"""From a trained model to what a challenge wants to be handed."""
