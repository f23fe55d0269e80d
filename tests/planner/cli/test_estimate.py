"""`plan estimate`: the JSON contract, printed totals, and whether it fits."""

import re
from typing import Any

import pytest

from tuneplan.planner.units import GIB, format_gib

COMPONENTS = ("weights", "gradients", "optimizer_states", "activations", "logits", "temporary", "kv_cache", "runtime")
ONE = ("estimate", "--model", "7b", "--seq-len", "512", "--micro-batch-size", "2", "--gpu", "a100-80g")
METHODS = {
    "full": ("--method", "full"),
    "lora": ("--method", "lora", "--rank", "8", "--target-modules", "all-linear"),
    "qlora": ("--method", "qlora", "--rank", "16", "--target-modules", "q_proj,v_proj"),
}


@pytest.mark.parametrize("extra", [(), ("--zero-stage", "3", "--data-parallel", "8"), ("--gradient-accumulation-steps", "4")])
@pytest.mark.parametrize("checkpointing", ["--gradient-checkpointing", "--no-gradient-checkpointing"])
@pytest.mark.parametrize("method", list(METHODS))
def test_json_contract(plan: Any, method: str, checkpointing: str, extra: tuple[str, ...]) -> None:
    """--json has the agreed keys and types; components sum to the peak, and the peak to what the device holds."""
    result = plan(*ONE, *METHODS[method], checkpointing, *extra, "--json")
    assert (0, "") == (result.code, result.err) or 1 == result.code
    document = result.json()
    assert (1, "estimated") == (document["schema_version"], document["source"])
    for key, kind in {
        "request": dict,
        "parameters": dict,
        "peak": dict,
        "phases": dict,
        "components": dict,
        "checkpoint_bytes": int,
        "step_seconds": float,
        "tokens_per_second": float,
        "basis": dict,
        "warnings": list,
    }.items():
        assert isinstance(document[key], kind), key
    assert {"total", "trainable"} == set(document["parameters"])
    assert 0 < document["parameters"]["trainable"] <= document["parameters"]["total"]
    assert {"load", "forward", "backward", "optimizer_step", "save"} == set(document["phases"])
    components, peak = document["components"], document["peak"]
    assert set(COMPONENTS) == set(components)
    assert all(type(size) is int and size >= 0 for size in components.values())
    for key in ("allocated_bytes", "reserved_bytes", "device_bytes", "host_bytes"):
        assert type(peak[key]) is int
    assert peak["allocated_bytes"] == sum(components[name] for name in COMPONENTS if name != "runtime")
    assert peak["allocated_bytes"] <= peak["reserved_bytes"] <= peak["device_bytes"]
    assert peak["device_bytes"] == peak["reserved_bytes"] + components["runtime"]
    phase = document["phases"][peak["phase"]]
    assert (peak["allocated_bytes"], peak["op"]) == (phase["peak_bytes"], phase["op"])
    measured = [p["peak_bytes"] for p in document["phases"].values() if "peak_bytes" in p]
    assert peak["allocated_bytes"] == max(measured)


@pytest.mark.parametrize("method", list(METHODS))
def test_printed_totals_are_those_of_the_json(plan: Any, method: str) -> None:
    """Peak, components, phases, checkpoint and parameters are printed as the document gives them."""
    arguments = (*ONE, *METHODS[method])
    document, text = plan(*arguments, "--json").json(), plan(*arguments).out
    peak = document["peak"]
    assert f"Peak {format_gib(peak['device_bytes'])} on each GPU" in text
    assert f"allocated {format_gib(peak['allocated_bytes'])}, reserved {format_gib(peak['reserved_bytes'])};" in text
    shown = {**document["components"], "fragmentation": peak["reserved_bytes"] - peak["allocated_bytes"]}
    for name, size in shown.items():
        row = rf"^{name.replace('_', ' ')} +{re.escape(format_gib(size))} +\d+ %"
        assert bool(size) == bool(re.search(row, text, re.M)), name
    for name, phase in document["phases"].items():
        if name != "save":
            ends = rf"{re.escape(format_gib(phase['peak_bytes']))} +{re.escape(format_gib(phase['end_bytes']))}"
            assert re.search(rf"^{name.replace('_', ' ')} +{ends} +{re.escape(phase['op'])}", text, re.M), name
    assert re.search(rf"^checkpoint +{re.escape(format_gib(document['checkpoint_bytes']))} *$", text, re.M)
    assert f"{document['parameters']['trainable']:,} parameters" in text
    assert f"{document['tokens_per_second']:,.0f} tokens/s" in text
    for warning in document["warnings"]:
        assert "".join(warning.split()) in "".join(text.split())


def test_shares_of_the_peak_add_up(plan: Any) -> None:
    """Printed percentages are of the device peak and sum to 100 but for rounding."""
    shares = [int(n) for n in re.findall(r"GiB +(\d+) %|MiB +(\d+) %", plan(*ONE).out) for n in n if n]
    assert 100 == pytest.approx(sum(shares), abs=len(shares) / 2)


def test_parameters_count_the_adapter(plan: Any) -> None:
    """Total parameters are the model's and the adapter's together, as PEFT prints them."""
    document = plan("estimate", "--model", "7b", "--method", "lora", "--json").json()
    assert {"total": 6_738_415_616 + 19_988_480, "trainable": 19_988_480} == document["parameters"]


def test_without_a_card_there_is_no_time(plan: Any) -> None:
    """No GPU named: memory alone, step time and tokens per second are null and the basis says why."""
    document = plan("estimate", "--model", "7b", "--json").json()
    assert (None, None) == (document["step_seconds"], document["tokens_per_second"])
    assert "no GPU named" == document["basis"]["step_seconds"]
    assert document["request"]["gpu"] is None


def test_memory_does_not_depend_on_naming_a_card(plan: Any) -> None:
    """The default is an Ampere server card: naming an A100 changes no byte of the allocated peak."""
    bare = plan(*ONE[:-2], "--json").json()
    named = plan(*ONE, "--json").json()
    assert (bare["phases"], bare["components"]) == (named["phases"], named["components"])


def test_too_small_a_card_is_exit_code_1(plan: Any) -> None:
    """What does not fit is an honest no: the report is printed, with what is missing, and the exit code is 1."""
    arguments = ("estimate", "--model", "7b", "--method", "full", "--gpu", "rtx-4090")
    result = plan(*arguments)
    document = plan(*arguments, "--json").json()
    assert (1, "") == (result.code, result.err)
    assert re.search(r"^fits +no, short by \d", result.out, re.M)
    assert document["warnings"][0].startswith("Does not fit: short by ")


@pytest.mark.parametrize(("memory", "code"), [("80GiB", 0), ("20 GiB", 1), ("85GB", 0)])
def test_bare_memory_decides_what_fits(plan: Any, memory: str, code: int) -> None:
    """--gpu-memory holds the run against a card that is not known; there is no time for it."""
    result = plan("estimate", "--model", "7b", "--gpu-memory", memory, "--json")
    assert code == result.code
    assert result.json()["step_seconds"] is None


def test_the_margin_decides_at_the_edge(plan: Any) -> None:
    """The same run fits a card of its exact size without a margin, and not with one."""
    peak = plan("estimate", "--model", "7b", "--json").json()["peak"]["device_bytes"]
    exact = ("estimate", "--model", "7b", "--gpu-memory", f"{peak}B")
    assert 0 == plan(*exact, "--safety-margin", "0").code
    assert 1 == plan(*exact, "--safety-margin", "0.01").code
    assert 1 == plan("estimate", "--model", "7b", "--gpu-memory", f"{peak - 1}B", "--safety-margin", "0").code


def test_an_instance_stands_for_its_card(plan: Any) -> None:
    """p4de.24xlarge is an A100-80G for an estimate of one rank."""
    by_instance = plan(*ONE[:-1], "p4de.24xlarge", "--json").json()
    assert by_instance == plan(*ONE, "--json").json()


def test_request_holds_every_default(plan: Any) -> None:
    """The request names the model in full and every option that was filled in."""
    request = plan("estimate", "--model", "13b", "--json").json()["request"]
    assert ("meta-llama/Llama-2-13b-hf", "lora", 2048, 1) == tuple(
        request[k] for k in ("model", "method", "seq_len", "micro_batch_size")
    )
    assert ("bf16", "pure", "adamw", "off") == tuple(
        request[k] for k in ("dtype", "precision", "optimizer", "gradient_checkpointing")
    )
    assert ("sdpa", "eager") == (request["attention"], request["loss"])


@pytest.mark.parametrize(("words", "expected"), [((), "non-reentrant"), (("--reentrant",), "reentrant")])
def test_checkpointing_kind(plan: Any, words: tuple[str, ...], expected: str) -> None:
    """Gradient checkpointing is non-reentrant, as in transformers, unless --reentrant is given."""
    document = plan("estimate", "--model", "7b", "--gradient-checkpointing", *words, "--json").json()
    assert expected == document["request"]["gradient_checkpointing"]


def test_long_sequences_are_warned_of(plan: Any) -> None:
    """More tokens than the model's config allows is a warning with both numbers."""
    warnings = plan("estimate", "--model", "7b", "--seq-len", "8192", "--json").json()["warnings"]
    assert any("8192" in text and "4096" in text for text in warnings)


def test_the_kernel_is_named_with_its_reason(plan: Any) -> None:
    """Before Ampere sdpa cannot use flash: the report says which kernel runs and why."""
    document = plan("estimate", "--model", "7b", "--gpu", "v100-32g", "--dtype", "fp16", "--json").json()
    assert "the card is older than Ampere" in document["basis"]["attention_kernel"]
    assert any("older than Ampere" in text for text in document["warnings"])


def test_model_by_path_is_the_model_by_name(plan: Any, write_config: Any) -> None:
    """The same config gives the same bytes under its hub id, as a file and as a folder."""
    shape = {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    }
    path = write_config(**shape)
    by_name = plan("estimate", "--model", "7b", "--json").json()
    for name in (path, path.removesuffix("/config.json")):
        by_path = plan("estimate", "--model", name, "--json").json()
        assert name == by_path["request"].pop("model")
        by_name["request"].pop("model", None)
        assert by_name == by_path


def test_usable_memory_is_the_card_less_the_margin(plan: Any) -> None:
    """A plan's usable bytes are what the driver reports less the share kept free."""
    document = plan("--model", "7b", "--gpu-memory", "24GiB", "--safety-margin", "0.25", "--json").json()
    assert 18 * GIB == document["plans"][0]["peak"]["usable_bytes"]
