"""Published figures, arithmetic that keeps their bounds, and the gap to what was measured."""
