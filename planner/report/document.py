"""The frame that every JSON document has."""

import json
from collections.abc import Mapping
from typing import Any

SCHEMA_VERSION = 1


def text(body: Mapping[str, Any]) -> str:
    """A document as it is printed; `schema_version` comes first."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **body}, indent=2, allow_nan=False)
