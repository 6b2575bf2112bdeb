from tests.one_latent_a_word import model, model_folder, sae_folders

__all__ = ["model", "model_folder", "sae_folders"]
