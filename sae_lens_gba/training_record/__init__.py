"""What happens to the groups while an SAE trains, as data and as charts."""

from sae_lens_gba.training_record.record import TrainingRecord, record_training

__all__ = ["TrainingRecord", "record_training"]
