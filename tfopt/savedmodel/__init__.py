"""SavedModels, graphs and checkpoints as files, without a TensorFlow runtime."""
