"""Write docs/schemas/workloads.json, the JSON Schema of a workloads file, from planner/capacity/schema.py.

PYTHONPATH=src python docs/workloads_schema.py
"""

import json
from pathlib import Path

from tuneplan.planner.capacity.schema import json_schema

TARGET = Path(__file__).parent / "schemas" / "workloads.json"

if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
