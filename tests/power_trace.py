"""The recorded A100 (tests/data/power_trace_a100): its nvidia-smi log as samples, and the external meter beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.analysis.readings import Source
from harness.model import MeterDevice

HERE = Path(__file__).resolve().parent / "data" / "power_trace_a100"
METER_BEGAN_UNIX_S = 1689325966.932846
"""From the head of meter_w.csv.gz; the log's clock is local time, an hour ahead of it."""
DEVICE = MeterDevice("0", "gpu", power_period_s=0.1008, average_period_s=0.1008, average_window_s=0.025)
"""Period as seen in the log; the sensor looks for 25 ms of each period (Yang, Adamek and Armour, arXiv 2312.02741)."""


def a100() -> tuple[Source, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The board's log, and the external meter's seconds and joules since it began."""
    log = pd.read_csv(HERE / "nvidia_smi.csv", skipinitialspace=True)
    stamp = (pd.to_datetime(log["timestamp"]) - pd.Timestamp(0)).dt.total_seconds()
    time_s = stamp - 3600 - METER_BEGAN_UNIX_S
    rows = pd.DataFrame({"before_s": time_s, "after_s": time_s, "device": "0", "domain": "gpu", "energy_j": np.nan})
    rows["power_w"], rows["average_w"], rows["error"] = log["power.draw.instant [W]"], log["power.draw [W]"], None
    meter = pd.read_csv(HERE / "meter_w.csv.gz", skiprows=1, header=None, names=["time_s", "power_w"])
    seconds, watts = (meter[column].to_numpy(float) for column in meter)
    joules = np.concatenate([[0.0], np.cumsum(np.diff(seconds) * (watts[1:] + watts[:-1]) / 2)])
    return Source(DEVICE, "measured", 0.0, rows), seconds, joules
