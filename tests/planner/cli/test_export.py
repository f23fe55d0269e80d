"""`plan export` on the command line: what lands in the folder, what it says, and what it refuses."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

MODEL = ("--model", "8b", "--gpu", "a100-80g", "--gpus", "1")
PURE = ("--precision", "pure")
MAIN = {"trl": "train.yaml", "axolotl": "axolotl.yaml", "llama-factory": "train.yaml", "torchtune": "torchtune.yaml"}


def export(plan: Any, out: Path, *words: str) -> dict[str, Any]:
    """Export and give the main file's content."""
    outcome = plan("export", "--out", str(out), *words)
    assert 0 == outcome.code, outcome.err
    name = words[words.index("--format") + 1] if "--format" in words else "trl"
    content: dict[str, Any] = yaml.safe_load((out / MAIN[name]).read_text())
    return content


def test_trl(plan: Any, tmp_path: Path) -> None:
    """LoRA on one card: TRL's words say what the plan says; the peak stands in every file's head."""
    out = tmp_path / "run"
    config = export(plan, out, *MODEL, "--method", "lora(r=16,target_modules=q_proj,v_proj)")
    found = json.loads((out / "plan.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == [
        "accelerate.yaml", "launch.sh", "plan.json", "requirements.txt", "train.py", "train.yaml",
    ]  # fmt: skip
    assert (config["lora_r"], config["lora_target_modules"]) == (16, ["q_proj", "v_proj"])
    assert found["micro_batch_size"] == config["per_device_train_batch_size"]
    assert found["gradient_accumulation_steps"] == config["gradient_accumulation_steps"]
    assert (config["dtype"], config["bf16"], config["packing"], config["model_loss"]) == ("bfloat16", False, True, True)
    updates = -(-10_000_000 // (64 * 2048))
    assert updates == config["max_steps"]
    peak = f"{found['peak']['allocated_bytes'] / 2**30:.2f} GiB"
    for name in ("train.yaml", "accelerate.yaml", "launch.sh"):
        assert f"{peak} allocated" in (out / name).read_text()
    assert os.stat(out / "launch.sh").st_mode & stat.S_IXUSR
    compile((out / "train.py").read_text(), "train.py", "exec")


def test_accelerate_follows_the_sharding(plan: Any, tmp_path: Path) -> None:
    """DDP, FSDP2 that reshards or not, and DeepSpeed where fp32 master weights are kept."""
    kinds = {}
    for name, words in {
        "ddp": ("--zero-stage", "0", "--method", "lora"),
        "two": ("--zero-stage", "2", "--method", "lora"),
        "three": ("--zero-stage", "3", "--method", "lora"),
        "master": ("--zero-stage", "1", "--method", "full"),
    }.items():
        export(plan, tmp_path / name, *MODEL[:4], "--gpus", "8", *words)
        kinds[name] = yaml.safe_load((tmp_path / name / "accelerate.yaml").read_text())
    assert [8] * 4 == [kind["num_processes"] for kind in kinds.values()]
    assert ["MULTI_GPU", "FSDP", "FSDP", "DEEPSPEED"] == [kind["distributed_type"] for kind in kinds.values()]
    assert [False, True] == [kinds[name]["fsdp_config"]["fsdp_reshard_after_forward"] for name in ("two", "three")]
    deepspeed = json.loads((tmp_path / "master" / "deepspeed.json").read_text())
    assert (1, True) == (deepspeed["zero_optimization"]["stage"], deepspeed["bf16"]["enabled"])
    assert "FSDP_RESHARD_AFTER_FORWARD=true" in (tmp_path / "three" / "launch.sh").read_text()


def test_other_methods_of_peft(plan: Any, tmp_path: Path) -> None:
    """What TRL's options cannot say is in PEFT's own file, which the script reads."""
    config = export(plan, tmp_path / "run", *MODEL, "--method", "lokr(r=4)+modules_to_save(modules=lm_head)")
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert ("adapter", False) == (config["adapter_config"], "use_peft" in config)
    assert ("LOKR", 4, ["lm_head"]) == (adapter["peft_type"], adapter["r"], adapter["modules_to_save"])


@pytest.mark.parametrize("name", ["axolotl", "llama-factory", "torchtune"])
def test_qlora_elsewhere(plan: Any, tmp_path: Path, name: str) -> None:
    """Each tool's words for a 4-bit base with LoRA; what it does otherwise is said on stderr and kept in plan.json."""
    loss = {"torchtune": ("--loss", "chunked"), "axolotl": ("--precision", "autocast")}.get(name, ())
    out = tmp_path / "run"
    config = export(plan, out, *MODEL, "--method", "qlora(r=16)", "--format", name, "--attention", "flash", *loss)
    said = {
        "axolotl": ("adapter", "lora_r", "load_in_4bit", "lora_target_linear"),
        "llama-factory": ("finetuning_type", "lora_rank", "quantization_bit", "lora_target"),
        "torchtune": ("model", "dtype", "enable_activation_checkpointing"),
    }[name]
    values = [config[key] for key in said]
    if name == "torchtune":
        model = values.pop(0)
        assert ("torchtune.models.llama3_1.lora_llama3_1", 16, True) == (
            model["_component_"], model["lora_rank"], model["quantize_base"],
        )  # fmt: skip
        assert "bf16" == values[0]
    else:
        assert values in (["qlora", 16, True, True], ["lora", 16, 4, "all"])
    gaps = json.loads((out / "plan.json").read_text())["gaps"]
    assert bool(gaps) == (name != "axolotl")


def test_a_plan_from_a_file(plan: Any, tmp_path: Path) -> None:
    """The second plan of a document of `plan --json` gives the very files that a search for it gives."""
    words = ("--model", "8b", "--gpu", "a100-80g", "--gpus", "1,2", "--method", "lora", "--seq-len", "1024")
    document = plan(*words, "--json")
    file = tmp_path / "plan.json"
    file.write_text(document.out)
    export(plan, tmp_path / "a", "--plan", str(file), "--choice", "2")
    export(plan, tmp_path / "b", *words, "--choice", "2")
    for name in ("train.yaml", "accelerate.yaml", "plan.json"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()


def test_skypilot(plan: Any, tmp_path: Path) -> None:
    """Machines by price; pinned versions are installed, and the launcher is started."""
    export(plan, tmp_path / "run", *MODEL, "--method", "lora", "--skypilot", "--spot")
    task = yaml.safe_load((tmp_path / "run" / "sky.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["ordered"]
    assert all(set(item) <= {"infra", "instance_type"} for item in task["resources"]["ordered"])
    assert "requirements.txt" in task["setup"]
    assert "launch.sh" in task["run"]
    assert "trl==1.16.0" in (tmp_path / "run" / "requirements.txt").read_text()


def test_nothing_is_written_over(plan: Any, tmp_path: Path) -> None:
    """A second export into the same folder is refused and changes nothing, but for --force."""
    words = ("export", "--out", str(tmp_path / "run"), *MODEL, "--method", "lora")
    assert 0 == plan(*words).code
    (tmp_path / "run" / "train.yaml").write_text("mine")
    again = plan(*words)
    assert 2 == again.code
    assert "train.yaml" in again.err
    assert "--force" in again.err
    assert "mine" == (tmp_path / "run" / "train.yaml").read_text()
    assert 0 == plan(*words, "--force").code
    assert "mine" != (tmp_path / "run" / "train.yaml").read_text()


REFUSED = [
    (("--format", "trll", *MODEL), "'trl'"),
    ((*MODEL, "--engine", "fdsp"), "'fsdp'"),
    ((), "name a model"),
    ((*MODEL, "--method", "lora", "--choice", "9"), "--choice 9"),
    ((*MODEL, "--method", "lora", "--choice", "0"), "--choice 0"),
    ((*MODEL, "--method", "lora", "--train-data", "./missing.jsonl"), "missing.jsonl"),
    ((*MODEL, "--method", "lora", "--train-data", " "), "--train-data"),
    ((*MODEL, "--method", "lora", "--train-data-format", "chat"), "--train-data"),
    ((*MODEL, "--method", "lora", "--train-data-format", "csv", "--train-data", "a/b"), "csv"),
    ((*MODEL, "--method", "lora", "--loss", "liger"), "liger"),
    ((*MODEL, "--method", "lora", "--keep-outputs"), "--keep-outputs"),
    ((*MODEL, "--method", "lora", "--training", "dpo"), "--training dpo"),
    ((*MODEL, "--method", "lora", "--kernels", "tuneplan"), "--kernels tuneplan"),
    ((*MODEL, "--method", "bottleneck_adapter"), "bottleneck_adapter"),
    ((*MODEL, "--method", "lora(freeze_a=true)"), "freeze_a"),
    ((*MODEL, "--method", "lora", "--optimizer", "sgd_momentum"), "sgd_momentum"),
    ((*MODEL, "--method", "ia3", "--format", "axolotl", "--precision", "autocast"), "ia3"),
    ((*MODEL, "--method", "lora", "--format", "axolotl"), "--precision autocast"),
    ((*MODEL, "--method", "lora(bias=all)", "--format", "llama-factory"), "lora(bias=all)"),
    ((*MODEL, "--method", "lora", "--format", "torchtune", "--loss", "liger"), "liger"),
    ((*MODEL, "--method", "lora", "--format", "torchtune", "--precision", "autocast"), "autocast"),
    ((*MODEL, "--method", "lora", "--engine", "fsdp"), "single GPU"),
    ((*MODEL[:4], "--gpus", "8", "--method", "lora", "--zero-stage", "1"), "ZeRO-1"),
    ((*MODEL[:4], "--gpus", "8", "--method", "qlora", "--zero-stage", "3"), "--zero-stage 0"),
    ((*MODEL[:4], "--gpus", "8", "--method", "lora", "--zero-stage", "2", "--precision", "autocast"), "autocast"),
    (("--model", "8b", "--gpu-memory", "80GiB", "--method", "lora", "--skypilot"), "SkyPilot"),
    (("--model", "405b", "--gpu", "l4", "--gpus", "1", "--method", "lora"), "no plan fits"),
]


@pytest.mark.parametrize(("words", "named"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, tuple) else value)
def test_what_cannot_be(plan: Any, tmp_path: Path, words: tuple[str, ...], named: str) -> None:
    """Exit code 2, a message that names the option or the value, and no files."""
    outcome = plan("export", "--out", str(tmp_path / "run"), *words)
    assert (2, "") == (outcome.code, outcome.out)
    assert named in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"request": {}, "plans": []}',
        b'{"request": {}, "plans": [{}]}',
        b'{"plans": 3, "request": 1}',
        b"\xff\xfe",
        b'{"request": {"model": "8b", "gpus": ["a100-80g"]}, "plans": [{"gpu_count": "x"}]}',
    ],
)
def test_files_that_are_no_plan(plan: Any, tmp_path: Path, content: bytes) -> None:
    """Whatever lies in the file: one line that says what to give."""
    (tmp_path / "plan.json").write_bytes(content)
    outcome = plan("export", "--out", str(tmp_path / "run"), "--plan", str(tmp_path / "plan.json"))
    assert (2, "") == (outcome.code, outcome.out)
    assert "plan" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_plan_takes_no_other_options(plan: Any, tmp_path: Path) -> None:
    """Options of the search beside a plan that has its own are refused."""
    outcome = plan("export", "--out", str(tmp_path / "run"), "--plan", "plan.json", "--seq-len", "1024")
    assert 2 == outcome.code
    assert "--seq-len" in outcome.err
