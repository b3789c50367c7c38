"""A figure as a cell of a page shows it."""

import math
from typing import Any

NOT_AVAILABLE = "n/a"


def format_number(value: Any, digits: int, unit: str = "", scale: float = 1.0) -> str:
    """A number with fixed decimals and a true minus; n/a for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    text = f"{value * scale:,.{digits}f}"
    if float(text.replace(",", "")) == 0.0:
        text = text.lstrip("-")
    return text.replace("-", "−") + unit
