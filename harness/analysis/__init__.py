"""From the rows of a run to figures and findings. Pure, apart from the modules that read stored runs."""
