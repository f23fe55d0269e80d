"""Write docs/schemas/bench.json, the JSON Schema of `plan bench --json`, from planner/report/bench_document.py.

PYTHONPATH=src python docs/bench_schema.py
"""

import json
from pathlib import Path

from tuneplan.planner.report.bench_document import json_schema

TARGET = Path(__file__).parent / "schemas" / "bench.json"

if __name__ == "__main__":
    TARGET.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
