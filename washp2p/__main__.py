"""`python -m washp2p`: the same as the `washp2p` command."""

import sys

from washp2p.cli.main import main

sys.exit(main())
