"""What a query costs: pure functions of measured figures and sourced assumptions."""
