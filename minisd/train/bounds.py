"""Numbers of a recipe within their bounds."""


def within(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Refuses what lies outside, and NaN."""
    if not low <= value <= high:
        allowed = f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
        raise ValueError(f"{name} = {value}: give {allowed}")
