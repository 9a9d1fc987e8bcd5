"""The table of prediction errors."""

from harness.predict.validation import validation
from harness.report.table import Table


def validation_table() -> Table:
    """Errors on the published H100 points, and on points of another GPU with older serving software."""
    notes = (
        "error: median |ln(predicted / measured)| per output token, as a factor; a predicted model is never in the fit",
        "inside: share of points in the stated 90% interval",
        "H100: ML.ENERGY leaderboard v3 (2025). A100: leaderboard v2 (2024), where an older vLLM took far longer for "
        "each layer and sequence: the H100 fit is not valid for other serving software",
    )
    columns = ("points", "time error", "energy error", "time inside", "energy inside")
    return Table("validation", "Extrapolation against measurements", columns, tuple(validation()), notes)
