"""What files say about GPUs: engines, degrees, groups and offloads in the words of the command line."""

from pathlib import Path
from typing import Any

import pytest

from tuneplan.planner.configs.read import read_configs
from tuneplan.planner.errors import InputError

MODEL = "model_name_or_path: Qwen/Qwen2.5-0.5B\nmax_length: 64\n"


def options(tmp_path: Path, *texts: str) -> dict[str, Any]:
    """The options of several files."""
    paths = []
    for index, text in enumerate(texts):
        path = tmp_path / f"{index}.yaml"
        path.write_text(text)
        paths.append(path)
    return dict(read_configs(paths, given=("data_parallel",)).options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("distributed_type: MULTI_GPU\nnum_processes: 4\n", {"data_parallel": 4}),
        ("distributed_type: FSDP\nnum_processes: 4\n", {"data_parallel": 4, "zero_stage": 3, "engine": "fsdp"}),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: false}\n",
            {"zero_stage": 2, "engine": "fsdp"},
        ),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_sharding_strategy: SHARD_GRAD_OP}\n", {"zero_stage": 2}),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_sharding_strategy: 1}\n", {"zero_stage": 3}),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_offload_params: true}\n", {"offload": "optimizer,parameters"}),
        (
            "distributed_type: FSDP\nnum_machines: 2\nnum_processes: 16\nfsdp_config: {fsdp_sharding_strategy: HYBRID_SHARD}\n",
            {"data_parallel": 16, "shard_group": 8},
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3, offload_optimizer_device: cpu}\n",
            {"zero_stage": 3, "engine": "deepspeed", "offload": "optimizer"},
        ),
        (
            "num_processes: 8\ndistributed_type: FSDP\nparallelism_config: {parallelism_config_tp_size: 2}\n",
            {"data_parallel": 4, "tensor_parallel": 2},
        ),
    ],
)
def test_accelerate(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    """Kinds of `accelerate config` beside a TRL file."""
    found = options(tmp_path, MODEL, text)
    assert expected == {name: found.get(name) for name in expected}


def test_deepspeed_beside_a_trainer(tmp_path: Path) -> None:
    """`auto` takes what the Trainer says; the bucket is the square of the hidden size, 896 here."""
    path = tmp_path / "ds.json"
    path.write_text(
        '{"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "offload_optimizer": {"device": "cpu"}},'
        ' "bf16": {"enabled": "auto"}, "train_batch_size": "auto", "gradient_clipping": "auto"}'
    )
    train = tmp_path / "t.yaml"
    train.write_text(MODEL + "per_device_train_batch_size: 3\nmax_grad_norm: 0.7\n")
    found = read_configs([train, path], given=("data_parallel",)).options
    assert (2, 896 * 896, "optimizer", 3, 0.7) == tuple(
        found[name] for name in ("zero_stage", "reduce_bucket_size", "offload", "micro_batch_size", "max_grad_norm")
    )
    assert ("bf16", "master-weights") == (found["dtype"], found["precision"])


@pytest.mark.parametrize("where", ["trainer", "axolotl", "llama-factory", "accelerate", "inside"])
def test_a_deepspeed_file_that_is_named(tmp_path: Path, where: str) -> None:
    """Its stage is read from beside the file that names it; one that is not there is a warning."""
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}')
    text = {
        "trainer": MODEL + "deepspeed: ds.json\n",
        "axolotl": "base_model: 7b\ndeepspeed: ds.json\n",
        "llama-factory": "model_name_or_path: 7b\nfinetuning_type: lora\ncutoff_len: 64\ndeepspeed: ds.json\n",
        "accelerate": "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: ds.json}\n",
        "inside": MODEL + "deepspeed: {zero_optimization: {stage: 2}, bf16: {enabled: true}}\n",
    }[where]
    path = tmp_path / "train.yaml"
    path.write_text(text)
    found = read_configs([path], given=("data_parallel",))
    assert (2, "deepspeed") == (found.options["zero_stage"], found.options["engine"])
    assert any(entry.key.endswith("stage") and entry.status == "used" for entry in found.entries)
    path.write_text(text.replace("ds.json", "gone.json").replace("stage: 2", "stage: 9"))
    if where == "inside":
        with pytest.raises(InputError, match=r"line 3: zero_optimization\.stage: stage 9"):
            read_configs([path])
    else:
        assert any("no DeepSpeed file is found" in warning for warning in read_configs([path]).warnings)


def test_the_batch_triangle(tmp_path: Path) -> None:
    """A global batch gives the accumulation: 64 sequences, 2 a forward, on 4 GPUs."""
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 1}, "train_batch_size": 64, "train_micro_batch_size_per_gpu": 2}')
    train = tmp_path / "a.yaml"
    train.write_text("distributed_type: DEEPSPEED\nnum_processes: 4\ndeepspeed_config: {deepspeed_config_file: ds.json}\n")
    assert 8 == read_configs([train, path], model="7b").options["gradient_accumulation_steps"]


def test_the_trainers_own_keys(tmp_path: Path) -> None:
    """`fsdp` as text, with options below fsdp_config; a word that FSDP does not know is an error."""
    found = options(tmp_path, MODEL + "fsdp: shard_grad_op auto_wrap\nfsdp_config: {activation_checkpointing: true}\n")
    assert (2, "fsdp", True) == (found["zero_stage"], found["engine"], found["gradient_checkpointing"])
    with pytest.raises(InputError, match="line 3: fsdp: half_shard is no option of FSDP"):
        options(tmp_path, MODEL + "fsdp: half_shard\n")


def test_degrees_that_do_not_divide_the_gpus(tmp_path: Path) -> None:
    """Six GPUs in groups of four are refused, with the place."""
    text = "num_processes: 6\ndistributed_type: FSDP\nparallelism_config: {tp_size: 4}\n"
    with pytest.raises(InputError, match=r"line 1 \(num_processes\): 6 GPUs cannot be split by degrees of 4"):
        options(tmp_path, MODEL, text)


def test_precision_by_engine(tmp_path: Path) -> None:
    """The Trainer's bf16 is autocast; where weights are split it is 16-bit weights with fp32 copies, adapters included."""
    text = MODEL + "dtype: bfloat16\nuse_peft: true\nlora_target_modules: [q_proj]\n"
    alone = options(tmp_path, text)
    assert ("bf16", "autocast") == (alone["dtype"], alone["precision"])
    path = tmp_path / "t.yaml"
    path.write_text(text)
    zero = tmp_path / "z.yaml"
    zero.write_text("distributed_type: DEEPSPEED\nmixed_precision: bf16\nnum_processes: 2\ndeepspeed_config: {zero_stage: 3}\n")
    found = read_configs([path, zero])
    assert found.method is not None
    assert ("master-weights", False) == (found.options["precision"], found.method.parts[0].autocast_adapter_dtype)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("beta: 0.1\n", {"training": "dpo"}),
        ("beta: 0.1\nprecompute_ref_log_probs: true\n", {"training": "dpo", "reference": "precomputed"}),
        ("num_generations: 4\nmax_completion_length: 32\n", {"training": "grpo", "reference": "none", "num_generations": 4}),
        ("num_generations: 4\nmax_completion_length: 32\n", {"completion_length": 32, "seq_len": 544}),
        ("num_generations: 4\nbeta: 0.1\n", {"reference": "model", "completion_length": 512}),
        ("num_generations: 4\nbeta: 0.1\nuse_peft: true\nlora_target_modules: [q_proj]\n", {"reference": "adapters-off"}),
        ("center_rewards_coefficient: 0.1\n", {"training": "reward"}),
        ("desirable_weight: 2.0\n", {}),
    ],
)
def test_objectives(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    """TRL's trainers, recognised by their keys, in the words of --training."""
    head = MODEL.replace("max_length: 64\n", "") if "num_generations" in text else MODEL
    found = options(tmp_path, head + text)
    assert expected == {name: found.get(name) for name in expected}
    assert bool(expected) or "training" not in found
