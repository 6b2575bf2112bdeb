"""What happens to the groups while an SAE trains, as data and as charts."""

from sae_lens_gba.training_record.record import TrainingRecord, TrainingRecorder

__all__ = ["TrainingRecord", "TrainingRecorder"]
