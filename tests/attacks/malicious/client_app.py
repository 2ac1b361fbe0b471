"""What a server would have a site run: it leaves a mark where it ran, and answers nothing."""

import os
from pathlib import Path

from flwr.clientapp import ClientApp

Path(os.environ["PRISMFL_MARK"]).write_text("ran")
app = ClientApp()
