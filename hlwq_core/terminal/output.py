"""What commands print for programs."""

from __future__ import annotations

import json
import math
from typing import Any


def as_json(value: Any) -> str:
    """JSON of dictionaries, lists and scalars on one line; numbers that JSON does not have (NaN, infinity) become null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
