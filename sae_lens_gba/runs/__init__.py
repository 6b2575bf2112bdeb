"""The life of a training run: its folder, checkpoints, interruption, progress, its end."""
