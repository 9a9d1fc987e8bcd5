"""Published figures as data, and ratios that keep their bounds."""
