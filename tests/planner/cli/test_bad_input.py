"""Wrong input: one clear line on stderr, nothing on stdout, exit code 2, never a traceback, never an answer from nonsense."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from refusals import refuse

SMALL = ("--model", "7b", "--gpu", "a100-80g")
LORA = (*SMALL, "--method", "lora")
ESTIMATE = ("estimate", "--model", "7b")
LONG = "x" * 100_000


def name(value: object) -> str:
    """A short id for a case."""
    words = value if isinstance(value, tuple) else (value,)
    return ascii(" ".join(str(word) for word in words[-2:]))[1:61]


@pytest.mark.parametrize(
    ("arguments", "given", "meant"),
    [
        (("--model", "70", "--gpu", "a100-80g"), "70", "70b"),
        (("--model", "llama-2-7", "--gpu", "a100-80g"), "llama-2-7", "llama-2-7b"),
        (("--model", "7b", "--gpu", "a100-80"), "a100-80", "a100-80g"),
        (("--model", "7b", "--gpu", "p4de.24xlarg"), "p4de.24xlarg", "p4de.24xlarge"),
        ((*SMALL, "--method", "lroa"), "lroa", "lora"),
        ((*SMALL, "--method", "lora(rr=8)"), "rr", "r"),
        ((*SMALL, "--optimizer", "adamwfused"), "adamwfused", "adamw_fused"),
        ((*SMALL, "--attention", "flahs"), "flahs", "flash"),
        ((*SMALL, "--loss", "ligr"), "ligr", "liger"),
        ((*SMALL, "--dtype", "bf-16"), "bf-16", "bf16"),
        ((*SMALL, "--precision", "master_weights"), "master_weights", "master-weights"),
        ((*SMALL, "--objective", "costs"), "costs", "cost"),
        ((*SMALL, "--max-usdd", "5"), "--max-usdd", "--max-usd"),
        (("estmate", "--model", "7b"), "estmate", "estimate"),
        (("estimate", "--modle", "7b"), "--modle", "--model"),
        (("explain", "wieghts", "--model", "7b"), "wieghts", "weights"),
        (("models", "show", "lama-2-7b"), "lama-2-7b", "llama-2-7b"),
        (("gpus", "show", "h10"), "h10", "h100"),
        (("methods", "show", "qlor"), "qlor", "qlora"),
        (("models", "shw"), "shw", "show"),
    ],
    ids=name,
)
def test_unknown_names_get_close_matches(plan: Any, arguments: tuple[str, ...], given: str, meant: str) -> None:
    """A mistyped name is repeated with what it may have meant."""
    refuse(plan(*arguments), f"'{given}'", "Did you mean", f"'{meant}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--model", "qqqqqqqq", "--gpu", "a100-80g"),
        ("--model", "7b", "--gpu", "qqqqqqqq"),
        (*SMALL, "--method", "qqqqqqqq"),
        (*SMALL, "--optimizer", "qqqqqqqq"),
        ("qqqqqqqq",),
    ],
    ids=name,
)
def test_a_name_like_nothing_known_says_where_to_look(plan: Any, arguments: tuple[str, ...]) -> None:
    """Without close matches the line still says which command lists what is known."""
    outcome = plan(*arguments)
    refuse(outcome, "'qqqqqqqq'", "(")
    assert "Did you mean" not in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [(), ("--gpu", "a100-80g"), ("--model", "7b"), ("estimate",), ("explain", "peak"), ("explain",), ("models", "show")],
    ids=name,
)
def test_missing_options(plan: Any, arguments: tuple[str, ...]) -> None:
    """Without a model, a card or an argument nothing is assumed."""
    refuse(plan(*arguments))


TOKENS = ["0", "-5", "nan", "inf", "-inf", "1e400", "0.5", "abc", "1e", "__", "10 million", "10M\0", "1e19", "0x10", "1,000", "M"]


@pytest.mark.parametrize("option", ["--tokens", "--samples"])
@pytest.mark.parametrize("value", TOKENS, ids=ascii)
def test_tokens(plan: Any, option: str, value: str) -> None:
    """Zero, negative, infinite, fractional and unreadable amounts of training are refused."""
    refuse(plan(*SMALL, option, value), repr(value))


NUMBERS = {
    "--micro-batch-size": ["0", "-1", "3", "128", "1.5", "abc", "", "nan"],
    "--global-batch-size": ["0", "-1", "1.5", "abc", "", "inf"],
    "--seq-len": ["0", "1", "-1", "10000000000", str(10**30), "abc", "", "1e3"],
    "--zero-stage": ["7", "-1", "4", "a", ""],
    "--safety-margin": ["2", "-1", "nan", "inf", "1", "-0.01", "abc", ""],
    "--max-usd": ["-5", "0", "nan", "sNaN", "inf", "abc", "", "$", "50,000", "5 euros"],
    "--max-hours": ["-1", "0", "nan", "abc", "", "-inf"],
    "--gpus": ["0", "-1", "abc", "2000", "", "1,", "1.5", "1e3", "8x", "9" * 5000],
    "--max-grad-norm": ["-1", "abc", "", "-inf"],
    "--attention-dropout": ["-0.1", "1", "2", "nan", "abc", ""],
    "--epochs": ["abc", "", "1.5"],
}


@pytest.mark.parametrize(
    "arguments", [(*SMALL, option, value) for option, values in NUMBERS.items() for value in values], ids=name
)
def test_numbers_of_the_search(plan: Any, arguments: tuple[str, ...]) -> None:
    """A number outside what it can mean is refused, not clipped."""
    refuse(plan(*arguments))


ESTIMATE_NUMBERS = {
    "--micro-batch-size": ["0", "-1", "", "abc", str(10**12)],
    "--seq-len": ["0", "1", "-1", "10000000000", ""],
    "--gradient-accumulation-steps": ["0", "-1", "", "1.5"],
    "--data-parallel": ["0", "-1", "", "two"],
    "--zero-stage": ["7", "-1", ""],
    "--safety-margin": ["2", "-1", "nan", "1", ""],
    "--rank": ["0", "-3", str(10**9), str(10**40), "4097", "abc", "", "8.0"],
    "--max-grad-norm": ["-1", ""],
    "--attention-dropout": ["-1", "1", "nan"],
}


@pytest.mark.parametrize("command", ["estimate", "explain"])
@pytest.mark.parametrize("words", [(option, value) for option, values in ESTIMATE_NUMBERS.items() for value in values], ids=name)
def test_numbers_of_an_estimate(plan: Any, command: str, words: tuple[str, str]) -> None:
    """`estimate` and `explain` refuse the same numbers."""
    refuse(plan(command, *(("peak",) if command == "explain" else ()), "--model", "7b", *words))


@pytest.mark.parametrize("value", ["0", "-3", str(10**9), str(10**40), "4097", "abc", "", "8.0"])
def test_rank_of_the_search(plan: Any, value: str) -> None:
    """A rank of nothing, below nothing or above every matrix is refused."""
    refuse(plan(*LORA, "--rank", value))


@pytest.mark.parametrize(
    "modules", ["nope", "", ",", "q_proj,nope", "q_proj,", "lm_head", "(", "(((", ".*", "proj", "Q_PROJ", "\0", "all-linear,nope"]
)
def test_target_modules_that_match_nothing(plan: Any, modules: str) -> None:
    """A target that no module ends in is refused with the modules there are."""
    for arguments in (LORA, ESTIMATE):
        outcome = plan(*arguments, "--target-modules", modules)
        refuse(outcome)
        assert "q_proj" in outcome.err


METHODS = [
    "",
    ",",
    "+",
    "lora,,qlora",
    "lora+",
    "lora(",
    "lora)",
    "lora(r=8",
    "lora(r=8))",
    "lora(())",
    "lora((r=8))",
    "((((",
    "lora(8)",
    "lora(r=)",
    "lora(=8)",
    "lora(r=0)",
    "lora(r=-1)",
    "lora(r=abc)",
    "lora(r=1e9)",
    "lora(r=8,r=9)",
    "lora(r=8,)",
    "lora(lora_dropout=nan)",
    "lora(lora_dropout=1)",
    "lora(lora_alpha=nan)",
    "lora(bias=some)",
    "lora(use_rslora=maybe)",
    "lora(target_modules=)",
    "lora+lora",
    "qlora+lora",
    "full+lora",
    "quantized_base",
    "quantized_base+full",
    "quantized_base(quant_type=nf5)+lora",
    "full(r=8)",
    "l\u00f6ra",
    "\u202elora",
    "lora\0",
    "\U0001f999",
    LONG,
    "(" * 100_000,
    "lora(" * 20_000,
    "lora+" * 20_000,
    "lora(r=" + "9" * 1900 + ")",
    "lora(r=" + "9" * 90_000 + ")",
]


@pytest.mark.parametrize("text", METHODS, ids=name)
def test_methods(plan: Any, text: str) -> None:
    """Text bombs, unbalanced parentheses, unknown options and clashing parts are refused by every command."""
    refuse(plan(*SMALL, "--method", text))
    if "," not in text:
        refuse(plan(*ESTIMATE, "--method", text))
    if "," not in text and "r=99" not in text:  # a rank is too large for a model, and there is none here
        refuse(plan("methods", "show", text))


@pytest.mark.parametrize("modules", ["--rank", "--target-modules"])
def test_short_forms_need_a_method_that_has_them(plan: Any, modules: str) -> None:
    """--rank and --target-modules mean nothing to full fine-tuning, and are not dropped in silence."""
    refuse(plan(*SMALL, "--method", "full", modules, "8"), "full has no option")


@pytest.mark.parametrize("option", ["--model", "--gpu", "--method", "--optimizer", "--attention", "--loss", "--dtype"])
def test_empty_strings(plan: Any, option: str) -> None:
    """An empty value, as an unset shell variable leaves it, is refused."""
    refuse(plan(*SMALL, option, ""))
    refuse(plan(*ESTIMATE, option, ""))


@pytest.mark.parametrize("option", ["--precision", "--objective", "--gpus", "--tokens", "--samples", "--max-usd"])
def test_empty_strings_of_the_search(plan: Any, option: str) -> None:
    """So are those of the search's own options."""
    refuse(plan(*SMALL, option, ""))


@pytest.mark.parametrize(
    "value", ["\0", "a\0b", LONG, "/" + LONG, "\udc80", "~nobody-has-this-name/x", ".", "..", "/dev/null"], ids=name
)
def test_odd_names_of_a_model(plan: Any, value: str) -> None:
    """NUL bytes, endless names, undecodable bytes, folders and devices are refused in a short line."""
    outcome = plan("--model", value, "--gpu", "a100-80g")
    refuse(outcome)
    assert len(outcome.err) < 1000


@pytest.mark.parametrize("value", ["\0", " ", ",", "a100-80g,", LONG, "\udc80", "a100-80g;h100"], ids=name)
def test_odd_names_of_a_card(plan: Any, value: str) -> None:
    """So are those of a card."""
    outcome = plan("--model", "7b", "--gpu", value)
    refuse(outcome)
    assert len(outcome.err) < 1000


@pytest.mark.parametrize("option", ["--optimizer", "--attention", "--loss", "--dtype", "--precision"])
def test_endless_names_of_options(plan: Any, option: str) -> None:
    """An endless name is cut in the message."""
    outcome = plan(*ESTIMATE, option, LONG)
    refuse(outcome)
    assert len(outcome.err) < 1000


MEMORY = ["0GiB", "24", "-24GiB", "24 apples", "nanGiB", "infGiB", "1e400GiB", "1e9TiB", "GiB", "24GiB\0", "24 Gi B", "0.5 B"]


@pytest.mark.parametrize("value", MEMORY, ids=ascii)
def test_gpu_memory(plan: Any, value: str) -> None:
    """An amount of memory needs a sensible number and a unit."""
    refuse(plan("--model", "7b", "--gpu-memory", value), repr(value))
    refuse(plan(*ESTIMATE, "--gpu-memory", value), repr(value))


def test_less_memory_than_any_card(plan: Any) -> None:
    """Half a GiB is no card."""
    refuse(plan("--model", "7b", "--gpu-memory", "512MiB"), "too little for a GPU")


@pytest.mark.parametrize(
    "arguments",
    [
        (*SMALL, "--dtype", "fp32", "--precision", "master-weights"),
        (*SMALL, "--dtype", "fp32", "--attention", "flash"),
        (*SMALL, "--gpu", "p4de.24xlarge", "--gpus", "16"),
        (*ESTIMATE, "--gpu", "any"),
        (*ESTIMATE, "--method", "lora,qlora"),
        (*ESTIMATE, "stray"),
        (*ESTIMATE, "--json=yes"),
        (*SMALL, "--gpu-memory"),
    ],
    ids=name,
)
def test_contradictions(plan: Any, arguments: tuple[str, ...]) -> None:
    """Options that cannot hold together are refused."""
    refuse(plan(*arguments))


@pytest.mark.parametrize("seq_len", ["1000000000"])
def test_a_billion_tokens_of_context_never_fits(plan: Any, seq_len: str) -> None:
    """A length that nothing can hold is refused or an honest no, never a plan."""
    outcome = plan(*SMALL, "--seq-len", seq_len)
    assert outcome.code in (1, 2)
    assert "Recommended" not in outcome.out


def test_a_file_that_cannot_be_written_is_wrong_input(plan: Any, tmp_path: Path) -> None:
    """--html into a folder that is not there, or onto a folder, says so in a line and exits with 2."""
    for path in (tmp_path / "absent" / "x.html", tmp_path):
        outcome = plan(*SMALL, "--html", str(path))
        assert (2, 1) == (outcome.code, outcome.err.count("\n"))
        assert "cannot be written" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        (*SMALL, "--tokens", "1e99999999999"),
        ("--model", "7b", "--gpu-memory", "1e99999999999GiB"),
        (*SMALL, "--samples", "100", "--epochs", str(10**30)),
        (*SMALL, "--samples", "1e18"),
        (*SMALL, "--epochs", "-3"),
        (*SMALL, "--epochs", "3"),
        (*SMALL, "--samples", "1000", "--tokens", "20M"),
        (*SMALL, "--global-batch-size", str(10**30)),
        (*SMALL, "--global-batch-size", "3", "--gpus", "2"),
        (*SMALL, "--gpus", "1024"),
        ("--model", "7b", "--gpu", "p4de.24xlarge", "--global-batch-size", "4"),
        (*SMALL, "--max-grad-norm", "nan"),
        (*SMALL, "--max-hours", "inf"),
        (*SMALL, "--max-usd", "1e400"),
        (*SMALL, "--prices", ""),
        (*SMALL, "--gpu-file", ""),
        (*SMALL, "--gpu-memory", ""),
        (*SMALL, "--html", ""),
        (*SMALL, "--html", "\0"),
        (*SMALL, "--html", "/absent/x.html"),
        (*SMALL, "--attention", "flash", "--gpu", "v100-32g"),
        (*ESTIMATE, "--attention", "flash", "--gpu", "t4"),
        (*ESTIMATE, "--gpu-memory", ""),
        (*ESTIMATE, "--gpu-memory", "1MiB"),
        (*ESTIMATE, "--max-grad-norm", "nan"),
        (*ESTIMATE, "--data-parallel", str(10**30)),
        (*ESTIMATE, "--gradient-accumulation-steps", str(10**30)),
        (*ESTIMATE, "--gpu", "p4de.24xlarge", "--data-parallel", "16"),
        (*ESTIMATE, "--reentrant", "--no-gradient-checkpointing"),
    ],
    ids=name,
)
def test_nonsense_is_not_answered(plan: Any, arguments: tuple[str, ...]) -> None:
    """Amounts without limit or meaning, options that contradict each other or are empty: refused, never dropped in silence."""
    refuse(plan(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        (*SMALL, "--tokens", "9" * 60_000),
        (*SMALL, "--gpu-memory", "9" * 60_000),
        (*ESTIMATE, "--target-modules", LONG),
        (*SMALL, "--html", LONG),
        (*SMALL, "--max-usd", LONG),
        (*SMALL, "--gpus", LONG),
    ],
    ids=name,
)
def test_endless_values_are_cut(plan: Any, arguments: tuple[str, ...]) -> None:
    """A value of any length gives a message of a line or two on the screen."""
    assert len(plan(*arguments).err) < 1000


def test_every_process_exits_with_2(write_config: Any) -> None:
    """Through the real entry point: no traceback, exit code 2, nothing on stdout."""
    source = Path(__file__).parents[3] / "src"
    result = subprocess.run(
        [sys.executable, "-c", "from tuneplan.planner.cli.main import main; main()", "estimate", "--model", write_config(b"{")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    assert (2, "", 1) == (result.returncode, result.stdout, result.stderr.count("\n"))


@pytest.mark.parametrize(
    "words", [("--gpus", "8", "--micro-batch-size", "16"), ("--gpus", "4,8", "--micro-batch-size", "32")], ids=name
)
def test_micro_batches_that_no_number_of_gpus_can_share(plan: Any, words: tuple[str, ...]) -> None:
    """A global batch that cannot be split so is wrong input, not a "nothing fits" without a reason."""
    refuse(plan(*SMALL, *words), "cannot be split evenly")


def test_numbers_of_gpus_left_out_are_said(plan: Any) -> None:
    """Where some numbers of GPUs cannot share the batch, the answer says which."""
    outcome = plan(*SMALL, "--global-batch-size", "4", "--method", "lora")
    assert 0 == outcome.code
    assert "Left out: 8 GPUs" in " ".join(outcome.out.split())
    assert [8] == plan(*SMALL, "--global-batch-size", "4", "--method", "lora", "--json").json()["request"]["gpu_counts_left_out"]


def test_flash_attention_is_not_advised_where_it_cannot_run(plan: Any) -> None:
    """A card before Ampere gets the reason for its kernel, and no advice to use another's."""
    outcome = plan("estimate", "--model", "8b", "--method", "qlora", "--dtype", "fp16", "--gpu", "t4")
    printed = " ".join(outcome.out.split())
    assert "older than Ampere" in printed
    assert "FlashAttention-2 would save" not in printed
