"""Small, separable parts beside the models, each off unless it is asked for."""
