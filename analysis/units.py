"""Numbers as people read them: FLOPs, counts, shares and durations."""

import math

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def flops(value: float | None) -> str:
    """Writes compute with an SI prefix and three significant digits: 1.2e13 is "12 TFLOPs"."""
    return "unknown" if value is None else f"{si(value)}FLOPs"


def count(value: float | None) -> str:
    """Writes a count with an SI prefix and three significant digits: 11689512 is "11.7 M"."""
    return "unknown" if value is None else si(value).rstrip()


def si(value: float) -> str:
    """Writes three significant digits, a space and the SI prefix, ready for a unit: "11.7 M"."""
    if not math.isfinite(value):
        return f"{value} "
    rounded = float(f"{value:.3g}")  # first, so that 999.9e9 carries over to 1 T
    power = 0 if abs(rounded) < 1 else int(math.log10(abs(rounded)) // 3)
    power = min(power, len(_PREFIXES) - 1)
    return f"{rounded / 1000**power:.3g} {_PREFIXES[power]}"


def percent(share: float | None) -> str:
    """Writes a share between 0 and 1 in percent, to a tenth: 0.0834 is "8.3 %"."""
    return "unknown" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """Writes the two largest units: 7384 is "2 h 3 min"; below a minute, seconds: "4.2 s"."""
    if seconds is None:
        return "unknown"
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return _two(minutes // 60, "h", minutes % 60, "min")
    hours = round(seconds / 3600)
    return _two(hours // 24, "d", hours % 24, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit} {small} {small_unit}" if small else f"{large} {large_unit}"
