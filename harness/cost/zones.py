"""CO2 and water of the electricity of a query in a country: mixes of the package ecologits, the extra `market`."""

from dataclasses import replace
from importlib.metadata import version

from harness.config import near
from harness.cost.bill import Costs
from harness.errors import HarnessError
from harness.model import Figure


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
    added = [
        _times(each, per, name, unit)
        for each in energy
        for per, name, unit in ((mix.gwp, "co2_g", "g"), (mix.wue, "water_ml", "mL"))
    ]
    source = f"ecologits {version('ecologits')}"
    notes = [f"electricity of {mix.zone}: {mix.gwp:g} kg CO2e and {mix.wue:g} L of water a kWh ({source})"]
    notes += [str(warning.message) for warning in mix.warnings]
    return replace(costs, figures=(*costs.figures, *added), notes=(*costs.notes, *notes))


def _times(energy: Figure, per_wh: float, name: str, unit: str) -> Figure:
    """A figure in proportion to energy. kg/kWh are g/Wh, and L/kWh mL/Wh."""
    value, low, high = (None if x is None else x * per_wh for x in (energy.value, energy.low, energy.high))
    names = energy.name.replace("wh_", f"{name}_", 1), energy.unit.replace("Wh", unit, 1)
    return replace(energy, name=names[0], unit=names[1], value=value, low=low, high=high)
