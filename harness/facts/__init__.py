"""Published figures, arithmetic that keeps their bounds, and the gap to the measured cost."""
