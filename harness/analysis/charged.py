"""Which of the GPUs that were read are charged to a run."""

from collections.abc import Sequence
from dataclasses import replace

from harness.analysis.findings import finding
from harness.analysis.readings import GPU
from harness.model import Finding, MeterInfo
from harness.store.run import Run


def charge(run: Run, infos: Sequence[MeterInfo]) -> tuple[list[MeterInfo], str | None, list[Finding]]:
    """The meters without the GPUs that are not charged; why the run has no GPU energy, if so; and the findings.

    Only NVML's GPUs are in question: another meter reads what the user told it to read.
    """
    read = {each.device for info in infos if info.meter == "nvml" for each in info.devices if each.domain in GPU}
    if not read or run.engine is None:
        return [*infos], None, []
    charged, found = run.file.charged, []
    if charged is not None:
        devices, why = {*charged.devices}, charged.why
        if unread := devices - read:
            devices, why = set(), f"the meter did not read GPU {', '.join(sorted(unread))}, which the engine used"
    elif run.engine.device != "cpu" and len(read) <= run.engine.device_count:  # stored by an older harness
        devices, why = read, ""
    else:
        devices, why = set(), f"the run does not say which of {len(read)} GPUs its engine used"
    if run.engine.device == "cpu":
        why = "the engine ran on the CPU"
    if charged is not None and charged.asked:
        asked, used = ", ".join(charged.asked), ", ".join(charged.devices)
        found.append(finding("gpus-differ", asked=asked, used=used, why=charged.why))
    if not devices and run.engine.device != "cpu":
        found.append(finding("gpus-unknown", why=why))
    kept = [
        replace(info, devices=tuple(each for each in info.devices if info.meter != "nvml" or each.device in devices))
        for info in infos
    ]
    return kept, None if devices else why, found
