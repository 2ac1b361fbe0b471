"""A finished model's images with NumPy alone: `python -m prismfl.runtime MODEL --out grid.png`.

The name that programs import; it lives in `prismfl.generator.numpy_runtime`.
"""

import sys

from prismfl.generator.numpy_runtime import *  # noqa: F403
from prismfl.generator.numpy_runtime import main

if __name__ == "__main__":
    sys.exit(main())
