"""Settings of the demo."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo.

    Attributes:
        output: folder for the trained SAE; must not exist, or be an earlier demo's.
        cache: folder for the de-quantised model; None is the user's cache.
        hook_name: TransformerLens hook point the SAE is trained on.
        d_sae: number of latents.
        target_l0: active latents a token to train towards.
        training_tokens: tokens to train on.
        snippets_tokens: held-out tokens in which top activating snippets are looked for.
        seed: of weights and data order.
    """

    output: Path = Path("demo_output")
    cache: Path | None = None
    hook_name: str = "blocks.8.hook_resid_post"
    d_sae: int = 2304
    target_l0: float = 32.0
    training_tokens: int = 200_000
    snippets_tokens: int = 16_384
    seed: int = 0
