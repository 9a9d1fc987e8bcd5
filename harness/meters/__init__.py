"""Power, energy, and what a server says of itself, read by another process."""
