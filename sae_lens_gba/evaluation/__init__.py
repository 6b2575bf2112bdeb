"""Evaluating trained SAEs with other people's benchmarks."""
