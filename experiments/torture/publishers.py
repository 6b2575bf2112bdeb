"""Two processes that publish to one repo at once, on a Hub of this machine.

Lost is an SAE that is not there in the end, or not on the card.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import constants

from experiments.torture.training import publishable_sae, row, work_folder
from sae_lens_gba.hub.publishing import publish
from tests.distributed.several import start
from tests.local_hub import LocalHub

REPO = "user/saes"


def publish_some(rank: int, endpoint: str, token: str, folder: Path, n: int) -> None:
    """Publish ``n`` SAEs, one after the other."""
    constants.HF_HUB_OFFLINE = False
    constants.HF_HUB_CACHE = str(folder / f"cache.{rank}")
    for i in range(n):
        publish(
            {f"of-{rank}/{i}": folder / "sae"}, REPO, license="mit", show_progress=False,
            endpoint=endpoint, token=token,
        )  # fmt: skip


def rows(scale: float) -> list[dict[str, Any]]:
    """The row of the table; see `experiments.torture.run`."""
    n, publishers = max(1, round(20 * scale)), 2
    lost = []
    with work_folder() as work, LocalHub() as hub:
        publishable_sae().save_inference_model(work / "sae")
        ranks = start(publish_some, publishers, work / "ranks", hub.endpoint, hub.token, work, n)
        for process in ranks:
            process.wait(600)
        files = hub.repos[REPO].files() if REPO in hub.repos else {}
        card = files.get("README.md", b"").decode()
        for rank, process in enumerate(ranks):
            for i in range(n):
                name = f"of-{rank}/{i}"
                if f"{name}/sae_weights.safetensors" not in files or f"`{name}`" not in card:
                    last = process.said.strip().splitlines() or ["no error"]
                    lost.append(f"{name}: {last[-1]}")
        met = hub.n_requests("POST .*/commit/") - publishers * n
    return [row("two publish to one repo at once", publishers * n, lost, commits_tried_again=met)]
