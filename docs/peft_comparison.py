"""Print the table of docs/accuracy.md that compares with PEFT's published comparison of methods, as Markdown.

    PYTHONPATH=src python docs/peft_comparison.py    about ten seconds

The rows are those of tests/golden/published/peft_metamathqa.csv; the configurations those of the test of the same name.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from tuneplan.planner.units import GIB

spec = spec_from_file_location(
    "comparison", Path(__file__).parents[1] / "tests" / "planner" / "methods" / "test_peft_comparison.py"
)
assert spec is not None
assert spec.loader is not None
comparison = module_from_spec(spec)
sys.modules["comparison"] = comparison
spec.loader.exec_module(comparison)

found, others = comparison.rows()
print("| method | measured GiB | estimated GiB | error |\n|---|---|---|---|")
for row in sorted(found, key=lambda row: row.measured):
    print(f"| {row.name} | {row.measured / GIB:.2f} | {row.estimated / GIB:.2f} | {row.error:+.1%} |")
correlation = comparison.rank_correlation([row.measured for row in found], [row.estimated for row in found])
print(f"\nRank correlation {correlation:.3f} over {len(found)} rows, longest batch {comparison.LONGEST} tokens.")
print(f"Not modelled: {', '.join(others)}.")
