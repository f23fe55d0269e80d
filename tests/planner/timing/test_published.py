"""Predicted against published throughput: which rows chose the constants, and how the others come out.

The tables are published measurements, in tests/golden/published.
`pytest -s` prints every row.
"""

from dataclasses import replace
from statistics import median

import pytest
from published_speeds import CHOSEN, TABLES_OF, fms, peft, predict, show

from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.training.settings import Settings

# Largest error of a row, and of the median row, as a share of the published figure: what the model reaches, so that a change that
# makes it worse shows. The goal is 20 % and 8 %.
TOLERANCE = {
    # Same stack as the op list; the worst row is FSDP at batch 2, where the published run waits for something else.
    "fms": (0.16, 0.08),
    # 840 tokens a step, a mean; the published rate leaves padding out.
    "peft": (0.16, 0.08),
    # Cold runs of two or three steps under Windows, corrected by a constant.
    "rtx4080": (0.30, 0.20),
    # Torch of early 2024, cards with unknown links, samples a second from whole minutes; the H100 row is the worst.
    "fsdp": (0.35, 0.20),
}


@pytest.mark.parametrize("table", TOLERANCE)
def test_rows_that_judge_are_near(table: str) -> None:
    """Every published row that judges is within the table's tolerance, and the median row well within."""
    rows = TABLES_OF[table]()
    show(rows)
    judged = [row for row in rows if row.judges]
    worst, typical = TOLERANCE[table]
    assert len(judged) >= 4
    assert [row for row in judged if abs(row.ratio - 1) > worst] == []
    assert median(abs(row.ratio - 1) for row in judged) <= typical


def test_the_median_of_all_rows_reaches_the_goal() -> None:
    """8 % over all tables."""
    judged = [row for table in TABLES_OF.values() for row in table() if row.judges]
    assert len(judged) >= 37
    assert median(abs(row.ratio - 1) for row in judged) <= 0.08


def test_every_table_says_why_its_rows_do_not_judge() -> None:
    """Compiled code, another card, an unknown network: such rows are shown, and say so."""
    apart = {row.table for table in TABLES_OF.values() for row in table() if row.apart}
    assert {"torchtune", "torchtitan", "fsdp", "peft"} == apart


def test_methods_rank_as_published_on_the_l40s() -> None:
    """LoRA rank 32, rank 64, LoRA on the MLP, full: the published order."""
    four = ("lora/rank32", "lora/rank64", "lora/rank10-target-mlp", "full-finetuning/lr_0.00001")
    rows = [row for row in peft() if row.label in four]
    order = [row.label for row in sorted(rows, key=lambda row: row.published)]
    assert len(order) == 4
    assert [row.label for row in sorted(rows, key=lambda row: row.predicted)] == order


@pytest.mark.parametrize("batch", ["b4", "b8"])
@pytest.mark.parametrize("model", ["Mistral-7B", "PowerLM"])
def test_methods_rank_as_published_on_one_a100(model: str, batch: str) -> None:
    """Full, LoRA and both kinds of QLoRA on one card at the same batch: the published order."""
    rows = [row for row in fms() if row.label.startswith(model) and row.label.endswith(f"{batch} x1")]
    order = [row.label for row in sorted(rows, key=lambda row: row.published)]
    assert [row.label for row in sorted(rows, key=lambda row: row.predicted)] == order


def test_rows_that_chose_the_share() -> None:
    """The rows that chose MATMUL_SHARE have their median within 3 %, as the constant's source says."""
    chosen = [row for row in fms() if row.calibrates]
    assert len(chosen) == len(CHOSEN)
    assert abs(median(row.ratio for row in chosen) - 1) <= 0.03


def test_lora_gains_as_in_the_reference_study() -> None:
    """Llama-2-7B on 8 A100, 512 tokens: LoRA at batch 64 makes about 30 % more tokens/s than full at batch 8.

    16-bit adapters (rank 8, all dense layers), as a bf16 engine casts them; the margin is what "about" allows.
    """
    settings = Settings(micro_batch_size=8, seq_len=512, gradient_checkpointing="off")
    full = predict("llama-2-7b", (Full(),), settings, "a100-80g", ranks=8, zero_stage=3)
    adapters = (Lora(r=8, autocast_adapter_dtype=False),)
    lora = predict("llama-2-7b", adapters, replace(settings, micro_batch_size=64), "a100-80g", ranks=8, zero_stage=3)
    assert lora / full == pytest.approx(1.30, abs=0.10)
