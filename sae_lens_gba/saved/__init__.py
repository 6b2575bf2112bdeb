"""Saved SAEs: the one door to an SAE on disk, in a checkpoint or on the Hub."""
