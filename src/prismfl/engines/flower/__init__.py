"""The federation on Flower: a ServerApp and a ClientApp that carry the same frames as the simulator.

Importing this raises DependencyError where Flower is not installed.
"""

import os

from prismfl.errors import DependencyError

# Before anything of Flower or Ray is imported: nothing is reported and nothing is looked up.
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ.update(QUIET)

try:
    import flwr  # noqa: F401
except ImportError as error:
    raise DependencyError(f"flwr does not import ({error})", "Flower", "pip install 'prismfl[flower]'") from None
