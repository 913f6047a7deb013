"""The hash of a protocol: two figures can be compared if it is the same."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """Twelve digits of sha256 of all that the protocol says."""
    text = json.dumps(protocol, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
