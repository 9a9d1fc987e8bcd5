"""Models and GPUs that were not measured."""
