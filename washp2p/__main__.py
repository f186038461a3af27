"""`python -m washp2p`: the same as the `washp2p` command."""

import sys

from washp2p.cli import main

sys.exit(main())
