"""`plan --model M --gpu G`: the JSON contract, the report, limits, and the ways to name a card."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

from tuneplan.hardware_profiles.loader import load_gpus
from tuneplan.planner.units import GIB, format_gib

COMPONENTS = ("weights", "gradients", "optimizer_states", "activations", "logits", "temporary", "kv_cache", "runtime")
PLAN_TYPES: dict[str, Any] = {
    "method": str,
    "gpu": str,
    "instance": (str, type(None)),
    "gpu_count": int,
    "micro_batch_size": int,
    "gradient_accumulation_steps": int,
    "gradient_checkpointing": bool,
    "optimizer": str,
    "parallelism": dict,
    "peak": dict,
    "components": dict,
    "step_seconds": (float, type(None)),
    "tokens_per_second": (float, type(None)),
    "hours": (float, type(None)),
    "usd": (float, type(None)),
    "price": (dict, type(None)),
}
SMALL = ("--model", "7b", "--gpu", "a100-80g")


def check_plan(plan: dict[str, Any]) -> None:
    """Keys, types and sums of one plan."""
    for key, kind in PLAN_TYPES.items():
        assert isinstance(plan[key], kind), key
        assert kind is not int or not isinstance(plan[key], bool), key
    peak, components = plan["peak"], plan["components"]
    assert set(COMPONENTS) == set(components)
    assert all(type(size) is int and size >= 0 for size in components.values())
    assert peak["allocated_bytes"] == sum(components[name] for name in COMPONENTS if name != "runtime")
    assert peak["allocated_bytes"] <= peak["reserved_bytes"] <= peak["device_bytes"]
    assert peak["device_bytes"] == peak["reserved_bytes"] + components["runtime"]
    assert plan["gpu_count"] == plan["parallelism"]["data_parallel"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model", "70b", "--gpu", "a100-80g"),
        ("--model", "8b", "--gpu", "rtx-4090", "--gpus", "1"),
        ("--model", "7b", "--gpu", "t4,v100-32g,mi300x"),
        ("--model", "7b", "--gpu-memory", "24GiB"),
    ],
)
def test_json_contract(plan: Any, arguments: tuple[str, ...]) -> None:
    """--json is one document with the agreed keys, types and sums; plans fit, what is infeasible says why."""
    result = plan(*arguments, "--json")
    assert "" == result.err
    document = result.json()
    figures = ["evaluated", "plans_left_out", "infeasible_left_out"]
    assert ["schema_version", "request", "recommended", "plans", "infeasible", "savings", *figures] == list(document)
    assert 1 == document["schema_version"]
    assert document["recommended"] == document["plans"][0]
    for item in document["plans"]:
        check_plan(item)
        assert item["peak"]["device_bytes"] <= item["peak"]["usable_bytes"]
    for item in document["infeasible"]:
        check_plan(item)
        assert item["reason"]
        assert item["short_by_bytes"] == item["peak"]["device_bytes"] - item["peak"]["usable_bytes"] > 0


def test_the_global_batch_is_what_was_asked(plan: Any) -> None:
    """Micro-batch x accumulation x GPUs is the global batch in every plan."""
    for batch in (1, 8, 48):
        document = plan(*SMALL, "--global-batch-size", str(batch), "--json").json()
        assert document["plans"]
        for item in document["plans"]:
            assert batch == item["micro_batch_size"] * item["gradient_accumulation_steps"] * item["gpu_count"]


def test_request_holds_every_default(plan: Any) -> None:
    """No default is silent: the request names the model in full and every option that was filled in."""
    request = plan("--model", "70b", "--gpu", "a100-80g", "--json").json()["request"]
    assert "meta-llama/Llama-2-70b-hf" == request["model"]
    assert ["full", "lora", "qlora"] == request["methods"]
    assert (2048, 64, 10_000_000) == (request["seq_len"], request["global_batch_size"], request["tokens"])
    assert [1, 2, 4, 8] == request["gpu_counts"]
    assert all("r=8" in text for text in request["methods_in_full"][1:])


def test_header_prints_what_the_alias_stands_for(plan: Any) -> None:
    """The report says which model a size means."""
    assert "70b -> meta-llama/Llama-2-70b-hf" in plan("--model", "70b", "--gpu", "a100-80g").out
    assert "8b -> meta-llama/Meta-Llama-3.1-8B" in plan("--model", "8b", "--gpu", "a100-80g", "--method", "lora").out


def test_printed_totals_are_those_of_the_json(plan: Any) -> None:
    """Each row of the report's table shows the figures of the plan at the same place of the JSON document."""
    arguments = ("--model", "70b", "--gpu", "a100-80g")
    document, text = plan(*arguments, "--json").json(), plan(*arguments).out
    rows = re.findall(r"^(lora|qlora) +(\d) x a100-80g.*$", text, re.M)
    assert [(item["method"], str(item["gpu_count"])) for item in document["plans"]] == rows
    lines = [line for line in text.splitlines() if re.match(r"(lora|qlora) +\d x", line)]
    for item, line in zip(document["plans"], lines, strict=True):
        assert format_gib(item["peak"]["device_bytes"]) in line
        assert f"{item['tokens_per_second']:,.0f}" in line
        assert line.rstrip().endswith(f"${item['usd']:,.2f}{'*' if item['pareto'] else ''}")
    best = document["recommended"]
    whole = format_gib(best["peak"]["device_bytes"])
    assert f"peak {whole} of {format_gib(best['peak']['usable_bytes'])} usable on each GPU" in text
    for name, size in best["components"].items():
        if size:
            assert re.search(rf"^{name.replace('_', ' ')} +{re.escape(format_gib(size))} ", text, re.M), name
    for item in document["infeasible"]:
        assert f"short by {format_gib(item['short_by_bytes'])}" in " ".join(text.split())


def test_a_refusal_names_the_amount_the_component_and_a_change(plan: Any) -> None:
    """What does not fit says what it needs, what takes most, and the smallest change that would make it fit."""
    result = plan("--model", "70b", "--gpu", "a100-80g", "--method", "full", "--gpus", "1", "--json")
    assert 1 == result.code
    document = result.json()
    assert document["recommended"] is None
    assert [] == document["plans"]
    [miss] = document["infeasible"]
    assert "optimizer_states" == miss["component"]
    assert format_gib(miss["peak"]["device_bytes"]) in miss["reason"]
    assert miss["smallest_change"]


def test_the_smallest_change_works(plan: Any) -> None:
    """What the report proposes for full fine-tuning of a 7B on one card makes it fit when it is done."""
    arguments = ("--model", "7b", "--gpu", "a100-80g", "--gpus", "1", "--method", "full")
    [miss] = plan(*arguments, "--json").json()["infeasible"]
    change = miss["smallest_change"].removeprefix("use ").split()
    assert change[0].startswith("--")
    assert 0 == plan(*arguments, *change).code


def test_an_instance_is_used_whole(plan: Any) -> None:
    """p4de.24xlarge is eight A100-80G at that instance's price."""
    document = plan("--model", "7b", "--gpu", "p4de.24xlarge", "--json").json()
    assert [8] == document["request"]["gpu_counts"]
    for item in document["plans"]:
        assert ("a100-80g", 8, "p4de.24xlarge") == (item["gpu"], item["gpu_count"], item["instance"])
        assert "p4de.24xlarge" == item["price"]["instance"]
        assert item["price"]["usd_per_hour"] * item["hours"] == pytest.approx(item["usd"], abs=0.005)


def test_any_card_within_a_budget(plan: Any) -> None:
    """--gpu any looks at several cards; no plan costs more than --max-usd, and they come by cost."""
    result = plan("--model", "7b", "--gpu", "any", "--max-usd", "50", "--json")
    document = result.json()
    costs = [item["usd"] for item in document["plans"]]
    assert 0 == result.code
    assert len({item["gpu"] for item in document["plans"]}) > 5
    assert sorted(costs) == costs
    assert costs[-1] <= 50
    for item in document["infeasible"]:
        assert item["short_by_bytes"] > 0 or "limit" in item["reason"]


def test_a_time_limit_leaves_out_slower_plans(plan: Any) -> None:
    """--max-hours removes plans and says so; a limit that nothing meets is exit code 1."""
    free = plan(*SMALL, "--json").json()["plans"]
    middle = sorted(item["hours"] for item in free)[len(free) // 2]
    limited = plan(*SMALL, "--max-hours", str(middle), "--json").json()
    assert limited["plans"]
    assert all(item["hours"] <= middle for item in limited["plans"])
    assert any("above the limit" in item["reason"] for item in limited["infeasible"])
    assert 1 == plan(*SMALL, "--max-hours", "0.0001").code


@pytest.mark.parametrize("objective", ["cost", "time", "memory"])
def test_the_recommendation_is_the_best_of_its_objective(plan: Any, objective: str) -> None:
    """Among the plans that are listed none is cheaper, faster or smaller than the first."""
    plans = plan(*SMALL, "--objective", objective, "--json").json()["plans"]
    sizes = {
        "cost": [item["usd"] for item in plans],
        "time": [item["hours"] for item in plans],
        "memory": [item["peak"]["device_bytes"] * item["gpu_count"] for item in plans],
    }
    assert min(sizes[objective]) == sizes[objective][0]


def test_bare_memory_has_neither_time_nor_price(plan: Any) -> None:
    """--gpu-memory 24GiB gives memory alone: nothing is invented for a card that is not known."""
    result = plan("--model", "7b", "--gpu-memory", "24GiB", "--json")
    document = result.json()
    assert (0, [1]) == (result.code, document["request"]["gpu_counts"])
    for item in document["plans"]:
        assert [None] * 6 == [item[k] for k in ("step_seconds", "tokens_per_second", "hours", "usd", "price", "instance")]
        assert item["peak"]["usable_bytes"] <= 24 * GIB


def test_own_gpu_file(plan: Any, tmp_path: Path) -> None:
    """--gpu-file takes a card in the format of the bundled ones, and --prices prices it."""
    folder = Path(__file__).parents[3] / "hardware_profiles" / "gpus"
    text = (folder / "a100-80g.toml").read_text()
    text = re.sub(r"(?m)^id = .*$", 'id = "house-card"', text)
    text = re.sub(r"(?m)^aliases = .*?(\]|$)", "aliases = []", text, flags=re.S | re.M)
    card = tmp_path / "card.toml"
    card.write_text(text)
    prices = tmp_path / "prices.csv"
    prices.write_text(
        "provider,instance,purchase,usd_per_hour,region,gpu,gpu_count\nHouse,house-box,on_demand,1.25,here,house-card,4\n"
    )
    alone = plan("--model", "7b", "--gpu-file", str(card), "--gpus", "1", "--json")
    assert (0, "") == (alone.code, alone.err)
    assert {("house-card", None)} == {(item["gpu"], item["usd"]) for item in alone.json()["plans"]}
    priced = plan("--model", "7b", "--gpu-file", str(card), "--prices", str(prices), "--gpus", "1", "--json").json()
    for item in priced["plans"]:
        assert ("house-box", 1.25) == (item["instance"], item["price"]["usd_per_hour"])


def test_own_prices_join_the_bundled_ones(plan: Any, tmp_path: Path) -> None:
    """A cheaper price of the user's own wins; the file is named as its source."""
    prices = tmp_path / "prices.csv"
    prices.write_text(
        "provider,instance,purchase,usd_per_hour,region,gpu,gpu_count\nHouse,house-box,on_demand,0.01,here,a100-80g,8\n"
    )
    for item in plan(*SMALL, "--prices", str(prices), "--json").json()["plans"]:
        assert ("house-box", 0.01, str(prices)) == tuple(item["price"][k] for k in ("instance", "usd_per_hour", "source"))


@pytest.mark.parametrize(
    ("option", "content"),
    [
        ("--prices", b""),
        ("--prices", b"hello\n"),
        ("--prices", b"provider,instance,purchase,usd_per_hour,region\nAWS,p4de.24xlarge,on_demand,cheap,here\n"),
        ("--prices", b"provider,instance,purchase,usd_per_hour,region\nAWS,p4de.24xlarge,on_demand,-1,here\n"),
        ("--prices", b"provider,instance,purchase,usd_per_hour,region\nX,unknown-box,on_demand,1,here\n"),
        ("--prices", b"\xff\xfe\x00"),
        ("--gpu-file", b""),
        ("--gpu-file", b"not toml at all"),
        ("--gpu-file", b'id = "x"\n'),
    ],
)
def test_a_broken_data_file_is_exit_code_3(plan: Any, tmp_path: Path, option: str, content: bytes) -> None:
    """A price or card file that cannot be used is one line on stderr that names the file, and exit code 3."""
    file = tmp_path / "broken"
    file.write_bytes(content)
    result = plan(*SMALL, option, str(file))
    assert (3, "", 1) == (result.code, result.out, result.err.count("\n"))
    assert str(file) in result.err


def test_html_holds_the_same_totals(plan: Any, tmp_path: Path) -> None:
    """--html writes the report beside the text on stdout."""
    file = tmp_path / "report.html"
    result = plan(*SMALL, "--html", str(file))
    page = file.read_text()
    assert (0, "") == (result.code, result.err)
    assert page.startswith("<!DOCTYPE html>")
    peak = re.search(r"peak (\S+ GiB) of", result.out)
    assert peak is not None
    assert peak[1] in page


def test_html_beside_json_leaves_stdout_to_the_json(plan: Any, tmp_path: Path) -> None:
    """--json --html FILE: one JSON document on stdout, the page in the file."""
    file = tmp_path / "report.html"
    document = plan(*SMALL, "--json", "--html", str(file)).json()
    assert format_gib(document["recommended"]["peak"]["device_bytes"]) in file.read_text()


def test_html_escapes_what_the_user_typed(plan: Any, write_config: Any, tmp_path: Path) -> None:
    """A file name with markup in it stays text in the page."""
    file = tmp_path / "report.html"
    path = write_config(name="<script>alert(1)<.json")
    assert 0 == plan("--model", path, "--gpu", "a100-80g", "--html", str(file)).code
    assert "<script>" not in file.read_text()


def test_markup_in_a_file_name_stays_text(plan: Any, write_config: Any) -> None:
    """Square brackets of a path are not taken for rich's markup."""
    path = write_config(name="[red]a[bold].json")
    assert "[red]a[bold].json" in "".join(plan("--model", path, "--gpu", "a100-80g").out.split())


def test_local_without_the_module(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """--gpu local without NVML's Python module says which extra to install."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    result = plan("--model", "7b", "--gpu", "local")
    assert (2, "", 1) == (result.code, result.out, result.err.count("\n"))
    assert "pip install 'tuneplan[profile]'" in result.err


class FakeNvmlError(Exception):
    """Stands for pynvml.NVMLError."""


def fake_pynvml(names: list[str], free_bytes: int) -> ModuleType:
    """A pynvml that knows some cards."""
    module: Any = ModuleType("pynvml")
    module.NVMLError = FakeNvmlError
    module.nvmlInit = lambda: None
    module.nvmlShutdown = lambda: None
    module.nvmlDeviceGetCount = lambda: len(names)
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetName = lambda handle: names[handle]
    memory = type("Memory", (), {"free": free_bytes, "total": free_bytes, "used": 0})
    module.nvmlDeviceGetMemoryInfo = lambda handle: memory
    return module  # type: ignore[no-any-return]


def test_local_without_a_driver(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """--gpu local with the module but without a driver says so, and what to write instead."""
    module: Any = fake_pynvml([], 0)

    def refuse() -> NoReturn:
        raise FakeNvmlError("Driver Not Loaded")

    module.nvmlInit = refuse
    monkeypatch.setitem(sys.modules, "pynvml", module)
    for arguments in (("--model", "7b"), ("estimate", "--model", "7b")):
        result = plan(*arguments, "--gpu", "local")
        assert (2, "", 1) == (result.code, result.out, result.err.count("\n"))
        assert "Driver Not Loaded" in result.err
        assert "--gpu-memory 24GiB" in result.err


def test_local_with_a_driver_but_no_card(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without cards is an error, not an empty answer."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml([], 0))
    result = plan("--model", "7b", "--gpu", "local")
    assert (2, "", 1) == (result.code, result.out, result.err.count("\n"))


def test_local_plans_for_what_is_free(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two local cards: known by name, so they have times; the memory is what is free now."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml([load_gpus()["a100-80g"].name] * 2, 60 * GIB))
    document = plan("--model", "7b", "--gpu", "local", "--safety-margin", "0", "--json").json()
    assert [1, 2] == document["request"]["gpu_counts"]
    for item in document["plans"]:
        assert ("a100-80g", 60 * GIB) == (item["gpu"], item["peak"]["usable_bytes"])
        assert item["hours"] > 0
        assert item["usd"] is None


def test_local_card_without_a_profile_has_no_time(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local card that no profile describes gets memory, and neither time nor price."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_pynvml(["Acme Abacus 9000"], 40 * GIB))
    document = plan("--model", "7b", "--gpu", "local", "--json").json()
    assert document["plans"]
    assert {(None, None)} == {(item["hours"], item["usd"]) for item in document["plans"]}


def test_samples_and_epochs_are_tokens(plan: Any) -> None:
    """--samples x --epochs sequences are as many tokens of the given length."""
    by_samples = plan(*SMALL, "--samples", "1000", "--epochs", "3", "--seq-len", "512", "--json").json()
    assert 1000 * 3 * 512 == by_samples["request"]["tokens"]
    by_tokens = plan(*SMALL, "--tokens", "1536000", "--seq-len", "512", "--json").json()
    assert by_tokens["plans"] == by_samples["plans"]


def test_money_in_the_report_is_that_of_the_json(plan: Any) -> None:
    """The recommendation's dollars and hourly price are printed as in the document."""
    best = plan(*SMALL, "--json").json()["recommended"]
    text = " ".join(plan(*SMALL).out.split())
    assert f"${best['usd']:,.2f} on {best['price']['provider']} {best['price']['instance']}" in text
    assert f"at ${best['price']['usd_per_hour']:,.2f}/h" in text


def test_spot_prices_are_asked_for(plan: Any) -> None:
    """--spot takes spot offers only."""
    spot = plan(*SMALL, "--spot", "--json").json()
    assert "spot" == spot["request"]["purchase"]
    purchases = [item["price"]["purchase"] for item in spot["plans"] if item["price"]]
    assert purchases
    assert {"spot"} == set(purchases)


def test_micro_batch_and_checkpointing_can_be_fixed(plan: Any) -> None:
    """Options narrow the search to what they say."""
    document = plan(*SMALL, "--micro-batch-size", "2", "--gradient-checkpointing", "--optimizer", "adamw_8bit", "--json").json()
    for item in document["plans"] + document["infeasible"]:
        assert (2, True, "adamw_8bit") == (
            item["micro_batch_size"],
            item["gradient_checkpointing"],
            item["optimizer"],
        )


def test_json_is_stable(plan: Any) -> None:
    """The same question gives the same bytes."""
    first = plan(*SMALL, "--json").out
    assert first == plan(*SMALL, "--json").out
    assert first == json.dumps(json.loads(first), indent=2) + "\n"
