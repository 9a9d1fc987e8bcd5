"""What it costs to serve a model, measured here, and whether the story in the press adds up."""

import os

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # the others keep what a long run has freed
__version__ = "0.1.0"
