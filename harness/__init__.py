"""What it costs to serve a model, measured here, and whether the story in the press adds up."""

__version__ = "0.1.0"
