"""Predictions for models and GPUs that were not measured, from published measurements."""
