"""Publishing GBA SAEs on the Hugging Face Hub, each with its place on one model card."""
