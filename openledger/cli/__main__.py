"""`python -m openledger.cli` is `openledger`."""

import sys

from openledger.cli.main import main

sys.exit(main())
