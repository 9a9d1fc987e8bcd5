"""A run's directory, and result files of other tools."""
