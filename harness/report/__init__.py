"""Tables, charts, pages and formats. Computes nothing."""
