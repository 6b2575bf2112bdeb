"""The lab: the paper, benchmarks, and what they share. Not part of the package."""
