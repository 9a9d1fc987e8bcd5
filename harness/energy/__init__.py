"""Energy of a run from its meters' readings. Pure: `measure` takes values and returns values.

windows: joules between two instants from one counter or power field. sources: a run's devices, and what is wrong with
their readings. figures: joules per token, ladder, idle. findings: doubts. docs/energy.md has the method.
"""

from harness.energy.figures import Energy, measure
from harness.energy.sources import meter_infos, watts_between

__all__ = ["Energy", "measure", "meter_infos", "watts_between"]
