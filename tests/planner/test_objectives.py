"""Reward models, DPO and GRPO against TRL's own trainers, run on the CPU with a tiny model and random weights.

Storages are tracked over three steps by the callback. TRL's Triton kernels, which allocate nothing, do nothing here.
"""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="the trainers are TRL's")
pytest.importorskip("datasets")

import exported_run

from tuneplan.planner.cli.main import run

TOLERANCE = 0.01
"""Token ids, masks and metrics are not in the estimate; they are small beside activations even here."""
ROLLOUT = 0.06
"""Reading the prompts holds about 0.8 kB a token that is not modelled: 5 % of these small steps; see docs/preference.md."""
PROMPT, COMPLETION = 64, 64


def words(count: int, seed: int) -> str:
    """So many words of the tiny vocabulary."""
    return " ".join(f"w{3 + (11 * seed + 7 * i) % 500}" for i in range(count))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model's folder."""
    return exported_run.write_model(tmp_path_factory.mktemp("tiny") / "model")


def measured(kind: str, model: str, out: Path, peft: dict[str, Any] | None, prompt: int = PROMPT, **options: Any) -> int:
    """Peak of three steps of a trainer."""
    import datasets
    import peft as peft_library
    import torch
    import transformers
    import trl

    from tuneplan.profiling.callback import MemoryCallback

    torch.manual_seed(0)
    fixed: dict[str, Any] = {
        "output_dir": str(out), "max_steps": 2, "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "optim": "adamw_torch_fused", "logging_steps": 100,
    }  # fmt: skip
    if kind != "grpo":
        fixed["max_length"] = PROMPT + COMPLETION
    auto = transformers.AutoModelForSequenceClassification if kind == "reward" else transformers.AutoModelForCausalLM
    more = {"num_labels": 1} if kind == "reward" else {}
    loaded = auto.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="eager", **more)
    rows = [
        {"prompt": words(prompt, i), "chosen": words(COMPLETION - 1, 2 * i), "rejected": words(COMPLETION - 1, 2 * i + 1)}
        for i in range(64)
    ]
    if kind == "reward":
        rows = [{"chosen": f"{r['prompt']} {r['chosen']}", "rejected": f"{r['prompt']} {r['rejected']}"} for r in rows]

    class Follower(MemoryCallback):
        """Knows the reference model too, which no callback is told of."""

        reference: Any = None

        def on_step_begin(self, *args: Any, **more: Any) -> None:
            super().on_step_begin(*args, **more)
            if self.reference is not None and self.live is not None and self.live._tracker is not None:
                self.live._tracker.watch(self.reference.parameters())

    callback = Follower(steps=2)
    given: dict[str, Any] = {
        "model": loaded,
        "args": getattr(trl, f"{kind.upper() if kind != 'reward' else 'Reward'}Config")(**fixed, **options),
        "train_dataset": datasets.Dataset.from_list([{"prompt": r["prompt"]} for r in rows] if kind == "grpo" else rows),
        "processing_class": transformers.AutoTokenizer.from_pretrained(model),
        "callbacks": [callback],
        "peft_config": None if peft is None else peft_library.LoraConfig(**peft),
    }
    if kind == "grpo":
        given["reward_funcs"] = lambda completions, **_: [float(len(text) % 7) for text in completions]
    trainer = getattr(trl, f"{kind.upper() if kind != 'reward' else 'Reward'}Trainer")(**given)
    callback.reference = getattr(trainer, "ref_model", None)
    with exported_run.kernels_that_do_nothing():
        trainer.train()
    assert callback.live is not None
    return callback.live.peak_bytes


def estimated(model: str, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """The estimate of the same step."""
    capsys.readouterr()
    fixed = ["--model", model, "--seq-len", str(PROMPT + COMPLETION), "--attention", "eager", "--optimizer", "adamw_fused"]
    assert 0 == run(["estimate", *fixed, *more, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


LORA = {"r": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
GENERATED = {"num_generations": 4, "max_completion_length": COMPLETION, "generation_kwargs": {"min_new_tokens": COMPLETION}}
GROUPS = ("--num-generations", "4", "--completion-length", str(COMPLETION))
SCORED = ("--completion-length", str(COMPLETION))
CASES = [
    ("reward", {**LORA, "task_type": "SEQ_CLS"}, "lora", False, {}, ()),
    ("dpo", LORA, "lora", False, {}, SCORED),
    ("dpo", None, "full", True, {}, SCORED),
    ("dpo", LORA, "lora", True, {"precompute_ref_log_probs": True}, (*SCORED, "--reference", "precomputed")),
    ("grpo", LORA, "lora", False, {"beta": 0.1, **GENERATED}, (*GROUPS, "--reference", "adapters-off")),
]


def both(
    model: str, out: Path, capsys: pytest.CaptureFixture[str], kind: str, peft: Any, method: str, checkpointing: bool,
    options: dict[str, Any], more: tuple[str, ...], prompt: int = PROMPT,
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """The measured peak, and the estimate."""
    peak = measured(kind, model, out, peft, prompt, gradient_checkpointing=checkpointing, **options)
    flag = "--gradient-checkpointing" if checkpointing else "--no-gradient-checkpointing"
    return peak, estimated(model, capsys, "--training", kind, "--method", method, flag, *more)


@pytest.mark.parametrize(("kind", "peft", "method", "checkpointing", "options", "more"), CASES)
def test_trainers(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, peft: Any, method: str, checkpointing: bool,
    options: dict[str, Any], more: tuple[str, ...],
) -> None:  # fmt: skip
    """Each trainer, full and with adapters, with and without checkpointing, with each kind of reference."""
    options = {"per_device_train_batch_size": 4, **options}
    peak, found = both(model, tmp_path, capsys, kind, peft, method, checkpointing, options, ("--micro-batch-size", "4", *more))
    assert peak == pytest.approx(found["peak"]["allocated_bytes"], rel=TOLERANCE)


@pytest.mark.parametrize(("prompt", "at_once", "op"), [(112, 12, "prompts: "), (8, 48, "generate")])
def test_rollouts(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], prompt: int, at_once: int, op: str) -> None:
    """Many completions at once, whose prompts, or whose cache of keys and values, need more than the training itself."""
    length = 16 if op != "generate" else 40
    options = {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": at_once, "beta": 0.0, "num_generations": 4,
        "max_completion_length": length, "generation_kwargs": {"min_new_tokens": length},
    }  # fmt: skip
    words = ("--gradient-accumulation-steps", str(at_once), "--num-generations", "4", "--completion-length", str(length))
    words = (*words, "--seq-len", str(prompt + length))
    peak, found = both(model, tmp_path, capsys, "grpo", LORA, "lora", True, options, words, prompt)
    assert ("rollout", True) == (found["peak"]["phase"], found["peak"]["op"].startswith(op))
    assert peak == pytest.approx(found["peak"]["allocated_bytes"], rel=ROLLOUT)
