"""CO2 and water of the electricity of a query in a country: mixes of the package ecologits, the extra `market`."""

from dataclasses import replace
from functools import partial
from importlib.metadata import version
from operator import mul

from harness.config import near
from harness.cost.bill import Costs, mapped
from harness.errors import HarnessError


def in_zone(costs: Costs, zone: str | None) -> Costs:
    """The costs, and the CO2 and water of what takes Wh, in a zone (ISO 3166-1 alpha-3, WOR is the world); as they are
    without a zone.

    Grams of CO2 equivalent and millilitres of water used to make the electricity; not those of the building or of the
    hardware. HarnessError without the package, or for an unknown zone.
    """
    if zone is None:
        return costs
    try:
        from ecologits.electricity_mix_repository import electricity_mixes
    except ImportError:
        raise HarnessError("--zone needs the package ecologits", "pip install ecologits") from None
    if (mix := electricity_mixes.find_electricity_mix(zone.upper())) is None:
        known = [each.zone for each in electricity_mixes.list_electricity_mixes()]
        raise HarnessError(
            f"unknown zone '{zone}'", f"{near(zone.upper(), known)}give ISO 3166-1 alpha-3, as USA, or WOR"
        )
    energy = [each for each in costs.figures if each.name.startswith("wh_per_") and each.name.count(".") == 0]
    added = []
    for each in energy:
        for per_wh, name, unit in (
            (mix.gwp, "co2_g", "g"),
            (mix.wue, "water_ml", "mL"),
        ):  # kg/kWh are g/Wh, L/kWh mL/Wh
            names = each.name.replace("wh_", f"{name}_", 1), each.unit.replace("Wh", unit, 1)
            added.append(mapped(each, partial(mul, per_wh), name=names[0], unit=names[1]))
    source = f"ecologits {version('ecologits')}"
    notes = [f"electricity of {mix.zone}: {mix.gwp:g} kg CO2e and {mix.wue:g} L of water a kWh ({source})"]
    notes += [str(warning.message) for warning in mix.warnings]
    return replace(costs, figures=(*costs.figures, *added), notes=(*costs.notes, *notes))
