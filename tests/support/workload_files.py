"""Pieces of workloads files, and answers to them."""

from datetime import date
from pathlib import Path

from tuneplan.planner.capacity.options import CapacityAnswer, plan_capacity
from tuneplan.planner.capacity.read import read_workloads

TODAY = date(2026, 11, 1)
HEAD = """version: 1
horizon: 12 months
hardware:
  rent: [g6e.xlarge, g6e.12xlarge]
"""
BUY = """  buy:
    - name: box
      gpu: rtx-4090
      gpus: 2
      machine_price: 6000 USD
      host_power: 300 W
      electricity: 0.13 USD/kWh
      pue: 1.5
      hosting: 150 USD/kW/month
      lifetime: 36 months
      source: an example
      date: 2026-06-01
"""
TRAINING = """training:
  - name: tune
    model: 7b
    method: qlora
    tokens: 5M
    runs: 1/week
    deadline: 48 hours
    seq_len: 512
"""
SERVING = """serving:
  - name: chat
    model: 7b
    requests: 1/s
    peak: 3/s
    prompt_tokens: {mean: 300, p95: 900}
    output_tokens: {mean: 200, p95: 600}
"""


def answer(text: str, folder: Path) -> CapacityAnswer:
    """The answer to a workloads file of this text."""
    path = folder / "workloads.yaml"
    path.write_text(text, encoding="utf-8")
    return plan_capacity(*read_workloads(path), TODAY)
