"""The requests of a run as a table for analysts."""

import pandas as pd

from harness.analysis.times import times
from harness.store.run import Run


def requests_of(run: Run) -> pd.DataFrame:
    """A row for each request: the columns of `harness.model.Record`, then ttft_s, tpot_s, e2e_s.

    `arrival_s` and `arrival_tokens` hold a list in each row. `attrs["units"]`: column -> unit.
    """
    seen, texts = times(run.requests, run.state), run.requests.select_dtypes("category")
    found = run.requests.astype({"arrival_s": object, "arrival_tokens": object, **dict.fromkeys(texts, "str")}).copy()
    found = found.assign(**{name: seen[name] for name in ("ttft_s", "tpot_s", "e2e_s")})
    kinds = {"s": "s", "tokens": "tokens", "asked": "tokens"}
    found.attrs["units"] = {name: kinds[end] for name in found if (end := str(name).rpartition("_")[2]) in kinds}
    return found
