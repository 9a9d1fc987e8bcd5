"""Systems under test: they give tokens; the clock is the caller's."""
