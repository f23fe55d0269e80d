"""Predicted against published throughput: which rows chose the constants, and how the others come out.

The tables are published measurements, in tests/golden/published.
`pytest -s` prints every row.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import pytest

from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.quantized_base import QuantizedBase
from tuneplan.planner.models import lookup, network, registry
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network
from tuneplan.planner.timing.step_time import step_time
from tuneplan.planner.training.optimizers import find
from tuneplan.planner.training.settings import Settings

TABLES = Path(__file__).parents[2] / "golden" / "published"

# ibm/PowerLM-3b is not in the catalog; its dimensions are those of the checkpoint's config.json (3.51 B weights).
POWERLM = {
    "model_type": "granite", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 40,
    "num_attention_heads": 36, "num_key_value_heads": 36, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A published run: its name, tokens per second as published and as predicted, whether it chose constants."""

    table: str
    label: str
    published: float
    predicted: float
    calibrates: bool

    @property
    def ratio(self) -> float:
        """Predicted over published."""
        return self.predicted / self.published


def rows_of(name: str) -> Iterator[dict[str, str]]:
    """The rows of a published table."""
    with (TABLES / name).open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def predict(
    model: str,
    parts: tuple[Part, ...],
    settings: Settings,
    gpu: str,
    *,
    optimizer: str = "adamw",
    ranks: int = 1,
    zero_stage: int = 0,
    accumulation: int = 1,
) -> float:
    """Tokens per second and card."""
    net = network_of(model, parts, settings)
    time = step_time(
        net,
        settings,
        find(optimizer),
        find_gpu(gpu),
        data_parallel=ranks,
        zero_stage=zero_stage if ranks > 1 else 0,
        gradient_accumulation_steps=accumulation,
    )
    assert time.tokens_per_second is not None
    return time.tokens_per_second / ranks


def fms_runs() -> Iterator[tuple[dict[str, str], tuple[Part, ...], Settings, int]]:
    """A100-80GB SXM, 4096 packed tokens, FlashAttention-2, reentrant checkpointing (the default of transformers 4.48).

    Only plain transformers: no fused kernels (foak, liger). `accelerated-peft-bnb` is bitsandbytes without the cast of
    norms and embeddings to fp32. Rows with trainer_bf16 run under autocast. The loss is that of the row's transformers.

    Yields:
        The row as published, the method's parts, the settings, and the number of cards.
    """
    for r in rows_of("fms_acceleration.csv"):
        plain = r["framework_config"] in ("none", "baseline-peft-bnb", "accelerated-peft-bnb")
        dense = any(m in r["model"] for m in ("Mistral-7B", "PowerLM", "Llama-2-70b"))
        if not (plain and dense and r["source_group"].startswith("refs")):
            continue
        lora = Lora(
            r=16,
            target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
            lora_dropout=float(r["lora_dropout"] or 0),
        )
        base = QuantizedBase(double_quant=True, prepare_kbit=r["framework_config"] == "baseline-peft-bnb")
        parts: dict[str, tuple[Part, ...]] = {"full": (Full(),), "lora": (lora,), "qlora-nf4": (base, lora)}
        batch = int(r["per_device_train_batch_size"])
        settings = Settings(
            micro_batch_size=batch,
            seq_len=4096,
            attention="flash",
            gradient_checkpointing="reentrant",
            precision="autocast" if r["trainer_bf16"] else "pure",
            loss="shifted" if "transformers 4.48" in r["software"] else "shifted_fp32",
        )
        yield r, parts[r["method"]], settings, int(r["num_gpus"])


def network_of(model: str, parts: tuple[Part, ...], settings: Settings) -> Network:
    """The network of a published row, by the model's name there."""
    id, config = (model, ConfigReader(POWERLM, model)) if "PowerLM" in model else lookup.load(model.replace("NousResearch/", ""))
    return network.build(registry.read_spec(id, config), Method("published", parts), settings)


def fms() -> list[Row]:
    """Throughput is per card; above one card it is FSDP full shard."""
    rows = []
    for r, parts, settings, ranks in fms_runs():
        predicted = predict(r["model"], parts, settings, "a100-80g", ranks=ranks, zero_stage=3)
        label = f"{r['model'].split('/')[1]} {r['method']} {r['framework_config']} b{settings.micro_batch_size} x{ranks}"
        rows.append(Row("fms", label, float(r["train_tokens_per_second"]), predicted, ranks == 1 and label in CHOSEN))
    return rows


# One card, one row for each method: these chose MATMUL_SHARE. All other rows judge.
CHOSEN = (
    "Mistral-7B-v0.1 lora none b8 x1",
    "Mistral-7B-v0.1 qlora-nf4 accelerated-peft-bnb b8 x1",
    "PowerLM-3b full none b8 x1",
    "PowerLM-3b qlora-nf4 baseline-peft-bnb b8 x1",
)


def peft() -> list[Row]:
    """Llama-3.2-3B on an L40S: batch 4 of about 210 tokens, padded (a mask), no checkpointing, clipped, AdamW."""
    rows = []
    for r in rows_of("peft_metamathqa.csv"):
        name = r["experiment"]
        if name.startswith("full-finetuning"):
            parts: tuple[Part, ...] = (Full(),)
        elif name in ("lora/llama-3.2-3B-rank32", "lora/llama-3.2-3B-rank64", "lora/llama-3.2-3B-rank10-target-mlp"):
            parts = (Lora(r=int(r["pc_r"]), target_modules=tuple(json.loads(r["pc_target_modules"]))),)
        else:
            continue
        settings = Settings(micro_batch_size=4, seq_len=210, gradient_checkpointing="off", padded=True, compute_capability=(8, 9))
        predicted = predict("meta-llama/Llama-3.2-3B", parts, settings, "l40s")
        rows.append(Row("peft", name, float(r["train_tokens_per_sec_mean_of_windows"]), predicted, False))
    return rows


def rtx4080() -> list[Row]:
    """Qwen2.5 on an RTX 4080 under Windows: LoRA r16 on attention, paged 8-bit AdamW, sdpa, the first 2 or 3 steps.

    The table's own run of a model of almost no size (tiny-gpt2) gives what the script itself takes; that is subtracted.
    """
    rows = []
    table = list(rows_of("canifinetune_rtx4080.csv"))
    cold = sum(float(r["avg_step_time_s"]) * int(r["steps"]) for r in table if "tiny-gpt2" in r["model_id"])
    for r in table:
        if "Qwen" not in r["model_id"]:
            continue
        lora = Lora(r=16, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
        parts: tuple[Part, ...] = (lora,) if r["method"] == "lora" else (QuantizedBase(), lora)
        checkpointing = "non-reentrant" if r["gradient_checkpointing"] == "True" else "off"
        settings = Settings(
            micro_batch_size=int(r["micro_batch_size"]),
            seq_len=int(r["seq_len"]),
            gradient_checkpointing=checkpointing,
            compute_capability=(8, 9),
        )
        predicted = predict(r["model_id"], parts, settings, "rtx-4080", optimizer="paged_adamw_8bit")
        label = f"{r['model_id'].split('/')[1]} {r['method']} b{r['micro_batch_size']}x{r['seq_len']} {checkpointing}"
        seconds = float(r["avg_step_time_s"]) - cold / int(r["steps"])
        published = settings.micro_batch_size * settings.seq_len / seconds
        rows.append(Row("rtx4080", label, published, predicted, False))
    return rows


FSDP_CARDS = {
    "2x RTX 3090": "rtx-3090",
    "2x RTX 4090": "rtx-4090",
    "A5000": "a5000",
    "A100": "a100-40g",
    "H100": "h100-80g",
}


def fsdp() -> list[Row]:
    """fsdp_qlora: 1024 samples of one length, rank 64 on all linear layers, bf16, reentrant checkpointing, no offload.

    Rows whose source gives half the time elsewhere in its text are left out.
    """
    rows = []
    for r in rows_of("fsdp_qlora_benchmarks.csv"):
        gpu = next((id for text, id in FSDP_CARDS.items() if r["gpu"].startswith(text)), "")
        if not gpu or r["cpu_offload"] == "True" or "text gives time" in r["note"]:
            continue
        ranks, batch, length = int(r["num_gpus"]), int(r["batch_size"]), int(r["context_length"])
        lora = Lora(r=64, autocast_adapter_dtype=False)
        parts: tuple[Part, ...] = (lora,) if r["method"] == "lora" else (QuantizedBase(prepare_kbit=False), lora)
        settings = Settings(micro_batch_size=batch, seq_len=length, gradient_checkpointing="reentrant")
        model = {"Llama-2 7B": "llama-2-7b", "Llama-2 70B": "llama-2-70b", "Yi 34B": "yi-34b"}[r["model"]]
        steps = max(1, 32 // (ranks * batch)) if "effective batch" in r["work"] else 1
        stage = 0 if "DDP" in r["sharding"] else 3
        predicted = predict(model, parts, settings, gpu, ranks=ranks, zero_stage=stage, accumulation=steps)
        label = f"{r['model']} {r['method']} {gpu} x{ranks} b{batch}x{length} stage {stage}"
        rows.append(Row("fsdp", label, 1024 * length / float(r["time_s"]) / ranks, predicted, False))
    return rows


def show(rows: list[Row]) -> None:
    """Print the table."""
    for row in rows:
        mark = "*" if row.calibrates else " "
        print(f"{mark} {row.table:8} {row.label:62} {row.published:8.0f} {row.predicted:8.0f} {row.ratio:6.2f}")


TABLES_OF = {"fms": fms, "peft": peft, "rtx4080": rtx4080, "fsdp": fsdp}

# Largest error of a row, and of the median row, as a share of the published figure: what this first model reached,
# so that a change that makes it worse shows. The goal is 20 % and 8 %.
TOLERANCE = {
    # Same stack as the op list; the worst row is FSDP at batch 2, where the published run waits for something else.
    "fms": (0.22, 0.08),
    # 840 tokens a step: tensors live in the L2 of an L40S, which the roofline does not know; the length is a mean.
    "peft": (0.16, 0.05),
    # Cold runs of two or three steps under Windows, corrected by a constant.
    "rtx4080": (0.30, 0.20),
    # Torch of early 2024, cards with unknown links, samples a second from whole minutes; the H100 row is the worst.
    "fsdp": (0.40, 0.20),
}

# Rows that the model misses by more, and why. A row that stops missing must leave this list.
KNOWN_MISSES = {
    "Qwen2.5-0.5B-Instruct lora b1x1024 non-reentrant": "launch-bound under Windows, where a launch costs more",
    "Llama-2 7B lora rtx-3090 x2 b1x2048 stage 3": "weights gathered over PCIe without peer-to-peer copies",
}


@pytest.mark.parametrize("table", TABLES_OF)
def test_rows_that_chose_nothing_are_near(table: str) -> None:
    """Every published row that chose no constant is within the table's tolerance, and the median row well within."""
    rows = TABLES_OF[table]()
    show(rows)
    judged = [row for row in rows if not row.calibrates and row.label not in KNOWN_MISSES]
    worst, typical = TOLERANCE[table]
    assert len(judged) >= 4
    assert [row for row in judged if abs(row.ratio - 1) > worst] == []
    assert median(abs(row.ratio - 1) for row in judged) <= typical


def test_known_misses_still_miss() -> None:
    """A row on the list of misses is really outside the tolerance."""
    rows = [row for row in rtx4080() + fsdp() if row.label in KNOWN_MISSES]
    assert {row.label for row in rows if abs(row.ratio - 1) > TOLERANCE[row.table][0]} == set(KNOWN_MISSES)


def test_methods_rank_as_published_on_the_l40s() -> None:
    """LoRA rank 32, rank 64, LoRA on the MLP, full: the published order."""
    rows = peft()
    order = [row.label for row in sorted(rows, key=lambda row: row.published)]
    assert [row.label for row in sorted(rows, key=lambda row: row.predicted)] == order


@pytest.mark.parametrize("model", ["Mistral-7B", "PowerLM"])
def test_methods_rank_as_published_on_one_a100(model: str) -> None:
    """Full, LoRA and both kinds of QLoRA on one card, batch 8 where published, else 4: the published order."""
    rows = [row for row in fms() if row.label.startswith(model) and row.label.endswith("x1") and "full none b4" not in row.label]
    order = [row.label for row in sorted(rows, key=lambda row: row.published)]
    assert len(order) >= 2
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
