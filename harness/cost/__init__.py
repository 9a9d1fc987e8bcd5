"""From tokens and joules to US dollars and watt-hours, under sourced assumptions."""
