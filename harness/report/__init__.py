"""Tables for people and programs, made from values; the only place where units are converted for reading."""
