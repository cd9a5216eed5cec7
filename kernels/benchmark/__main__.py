"""`python -m kernels.benchmark`. Triton chooses its interpreter when it is imported, so that comes first."""

import os
import sys

if "interpreter" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

from kernels.benchmark.command import main

sys.exit(main())
