"""Published throughput of training steps (tests/golden/published) beside what the planner predicts for the same run."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.peft_config import from_mapping
from tuneplan.planner.methods.quantized_base import QuantizedBase
from tuneplan.planner.models import lookup, network, registry
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network
from tuneplan.planner.timing.layout_time import Machines
from tuneplan.planner.timing.step_time import step_time
from tuneplan.planner.training.optimizers import find
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import Sharding

TABLES = Path(__file__).parents[1] / "golden" / "published"

# ibm/PowerLM-3b is not in the catalog; its dimensions are those of the checkpoint's config.json (3.51 B weights).
POWERLM = {
    "model_type": "granite", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 40,
    "num_attention_heads": 36, "num_key_value_heads": 36, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A published run.

    Attributes:
        table: where it is from.
        label: what ran.
        published: tokens per second and card.
        predicted: the same by the planner.
        calibrates: it chose a constant.
        apart: why it does not judge; "" if it does.
    """

    table: str
    label: str
    published: float
    predicted: float
    calibrates: bool = False
    apart: str = ""

    @property
    def ratio(self) -> float:
        """Predicted over published."""
        return self.predicted / self.published

    @property
    def judges(self) -> bool:
        """Whether the row is evidence."""
        return not self.calibrates and not self.apart


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
    """Llama-3.2-3B on an L40S: batch 4 of about 210 tokens, padded (a mask), no checkpointing, clipped, AdamW.

    Every method that is modelled. The published rate counts tokens without padding, whose share is not known; so predictions, for
    batches without padding, should come out a few percent too high.
    """
    rows = []
    settings = Settings(
        micro_batch_size=4,
        seq_len=210,
        gradient_checkpointing="off",
        padded=True,
        compute_capability=(8, 9),
        use_cache=True,
        keep_outputs=True,
    )
    for r in rows_of("peft_metamathqa.csv"):
        name = r["experiment"].replace("llama-3.2-3B-", "")
        try:
            method = (
                from_mapping(json.loads(r["peft_config_json"]), name).method if "FULL" not in r["peft_type"] else parse("full")
            )
        except InputError:
            continue
        predicted = predict("meta-llama/Llama-3.2-3B", method.parts, settings, "l40s")
        apart = next((why for start, why in PARTLY_TIMED.items() if name.startswith(start)), "")
        rows.append(Row("peft", name, float(r["train_tokens_per_sec_mean_of_windows"]), predicted, apart=apart))
    return rows


PARTLY_TIMED = {
    "boft": "the inverses of its many small blocks are not timed",
    "oft": "the inverses of its many small blocks are not timed",
    "adalora": "the update of its ranks after each step is not timed",
}
"""Methods of which a part that is no matrix product of the model takes time, and what it is."""


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
            compute_capability=(7, 5) if r["method"] == "lora" else (8, 9),  # as its memory shows: no flash kernel
        )
        predicted = predict(r["model_id"], parts, settings, "rtx-4080", optimizer="paged_adamw_8bit")
        label = f"{r['model_id'].split('/')[1]} {r['method']} b{r['micro_batch_size']}x{r['seq_len']} {checkpointing}"
        seconds = float(r["avg_step_time_s"]) - cold / int(r["steps"])
        published = settings.micro_batch_size * settings.seq_len / seconds
        rows.append(Row("rtx4080", label, published, predicted))
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
        apart = "cards capped at 280 of 350 W" if "280W cap" in r["gpu"] else ""
        rows.append(Row("fsdp", label, 1024 * length / float(r["time_s"]) / ranks, predicted, apart=apart))
    return rows


def torchtune() -> list[Row]:
    """Torchtune on one card, packed sequences, compiled: the op list is of code that runs eagerly, so these rows do not judge."""
    rows = []
    for r in rows_of("torchtune.csv"):
        rank = int(r["lora_rank"] or 0)
        modules = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        lora = Lora(r=rank, target_modules=modules, autocast_adapter_dtype=False) if rank else None
        settings = Settings(
            micro_batch_size=int(r["batch_size"]),
            seq_len=int(r["seq_len"]),
            gradient_checkpointing=r["gradient_checkpointing"],
            loss="chunked",
            max_grad_norm=0.0,
            compute_capability=(8, 9) if "4090" in r["gpu"] else (8, 0),
        )
        predicted = predict(r["model"], (lora or Full(),), settings, r["gpu"], optimizer=r["optimizer"])
        label = f"{r['model']} {r['method']} {r['gpu']} b{r['batch_size']}x{r['seq_len']} {r['note']}"
        rows.append(Row("torchtune", label, float(r["tokens_per_second"]), predicted, apart="torch.compile"))
    return rows


def torchtitan() -> list[Row]:
    """Torchtitan's FSDP2 over 64 to 128 cards, full training of Llama 3, 8192 tokens, run eagerly.

    Selective checkpointing runs a part of a layer again: its time is taken as the mean of steps with and without checkpointing.
    """
    rows = []
    for r in rows_of("torchtitan.csv"):
        batch, length, ranks = int(r["local_batch_size"]), int(r["seq_len"]), int(r["gpus"])
        machines = Machines(8, float(r["network_bytes_per_second"])) if r["network_bytes_per_second"] else Machines(8)
        seconds = []
        for checkpointing in ("non-reentrant",) if r["checkpointing"] == "full" else ("non-reentrant", "off"):
            settings = Settings(micro_batch_size=batch, seq_len=length, gradient_checkpointing=checkpointing)
            net = network_of(r["model"], (Full(),), settings)
            time = step_time(net, settings, find("adamw"), find_gpu(r["gpu"]), layout=Sharding(ranks, 3), machines=machines)
            assert time.seconds is not None
            seconds.append(time.seconds)
        label = f"{r['model']} full {r['gpu']} x{ranks} b{batch}x{length} {r['checkpointing']} checkpointing"
        predicted = batch * length * len(seconds) / sum(seconds)
        rows.append(Row("torchtitan", label, float(r["tokens_per_second"]), predicted, apart=r["apart"]))
    return rows


def show(rows: list[Row]) -> None:
    """Print the table."""
    for row in rows:
        mark = "*" if row.calibrates else "-" if row.apart else " "
        print(f"{mark} {row.table:8} {row.label:62} {row.published:8.0f} {row.predicted:8.0f} {row.ratio:6.2f}")


TABLES_OF = {"fms": fms, "peft": peft, "rtx4080": rtx4080, "fsdp": fsdp, "torchtune": torchtune, "torchtitan": torchtitan}
