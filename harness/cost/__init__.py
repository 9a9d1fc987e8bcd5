"""From tokens and joules to US dollars and watt-hours, with sourced assumptions."""
