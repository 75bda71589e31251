"""`python -m fused_loss`: the command `fused-loss`."""

import sys

from fused_loss.cli import main

sys.exit(main())
