"""Engines, the systems under test. They stream tokens; the caller stamps the times."""
