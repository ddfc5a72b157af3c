"""`python -m synaptune.cli`: the command `synaptune`."""

import sys

from synaptune.cli.main import main

sys.exit(main())
