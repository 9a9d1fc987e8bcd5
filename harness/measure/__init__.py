"""The only room that touches the world: a run, its load, its clients, sweeps, and the machine."""
