"""``python -m sae_lens_gba_command`` is ``sae-lens-gba``."""

import sys

from sae_lens_gba_command import main

sys.exit(main())
