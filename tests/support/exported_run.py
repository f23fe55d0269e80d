"""A tiny model with random weights, its tokenizer and texts, and an exported TRL job run on them on this machine's CPU."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

CONFIG = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
WORDS = 127
LONGEST_SECONDS = 150
"""Of a run under torchrun, which takes about 15."""


def write_model(folder: Path) -> str:
    """A Llama of a few million random weights in bf16, with a tokenizer of whole words. Gives the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, CONFIG["vocab_size"])}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>").save_pretrained(
        folder
    )
    config = AutoConfig.for_model("llama", **CONFIG, pad_token_id=0, eos_token_id=1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return str(folder)


def write_texts(path: Path, count: int = 64) -> str:
    """Texts of `WORDS` words each, one JSON line a text. Gives the path."""
    lines = [json.dumps({"text": " ".join(f"w{3 + (7 * i + j) % 500}" for j in range(WORDS))}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@contextmanager
def kernels_that_do_nothing() -> Iterator[None]:
    """TRL's fused head as on a GPU: the Triton kernels fold tiles in place and allocate nothing, so here they do nothing."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    nothing = type("Kernel", (), {"__getitem__": lambda self, _: lambda *args, **options: None})()
    replaced: list[tuple[Any, str, Any]] = [
        (chunked_logprob, "_use_triton", lambda _: True),
        (utils, "_use_triton", lambda _: True),
        (chunked_logprob, "_forward_kernel", nothing),
        (chunked_logprob, "_backward_kernel", nothing),
        (chunked_logprob, "_addmm_fp32", lambda *_: None),
        (chunked_logprob, "triton", SimpleNamespace(cdiv=lambda a, b: -(-a // b))),
    ]
    before = [(module, name, getattr(module, name, None)) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def run_here(folder: Path, *more: str) -> dict[str, Any]:
    """Run the exported script in this process, and give what the callback measured."""
    argv, directory = sys.argv, Path.cwd()
    sys.argv = [
        "train.py",
        "--config",
        "train.yaml",
        "--use_cpu",
        "true",
        "--save_strategy",
        "no",
        "--disable_tqdm",
        "true",
        *more,
    ]
    os.chdir(folder)
    try:
        with kernels_that_do_nothing():
            runpy.run_path("train.py", run_name="__main__")
    finally:
        sys.argv = argv
        os.chdir(directory)
    measured: dict[str, Any] = json.loads((folder / "measured.json").read_text())
    return measured


def run_ranks(folder: Path, ranks: int, *more: str) -> dict[str, Any]:
    """Run it under torchrun with gloo, with the environment that launch.sh names, and give what the first rank measured."""
    line = next(line for line in (folder / "launch.sh").read_text().splitlines() if "torchrun --standalone" in line)
    words = line.removeprefix("# ").split()
    given = dict(word.split("=", 1) for word in words[: words.index("torchrun")])
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), __file__]
    script = [*words[words.index("train.py") :], "--use_cpu", "true", "--save_strategy", "no", "--disable_tqdm", "true", *more]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, **given, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": source}
    said = _run([*started, *script], folder, environment) or _run([*started, *script], folder, environment)
    assert said == "ended", said or "two runs stood still"
    measured: dict[str, Any] = json.loads((folder / "measured.json").read_text())
    return measured


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What became of it: "ended", what it said as it failed, or "" where it stood still, as gloo's ranks do once in a while."""
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _, said = process.communicate(timeout=LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its workers
            return ""
    return "ended" if process.returncode == 0 else said[-3000:]


def leave() -> None:
    """End a rank that is done, without Python's own end: a thread of gloo that frees a tensor meanwhile aborts the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _as_if_on_gpus() -> None:
    """Accelerate spreads a model by FSDP only where it believes to see GPUs; nothing else in it minds the CPU."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    first = PartialState.__init__

    def started(self: Any, *args: Any, **options: Any) -> None:
        first(self, *args, **options)
        if PartialState._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    setattr(PartialState, "__init__", started)  # noqa: B010


if __name__ == "__main__":
    from accelerate import Accelerator

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _as_if_on_gpus()
    sys.argv = sys.argv[1:]
    ended: list[Accelerator] = []

    def end_training(self: Accelerator) -> None:
        """Not the real one: the end of gloo's group may wait for a thread that waits for Python."""
        ended.append(self)

    setattr(Accelerator, "end_training", end_training)  # noqa: B010
    with kernels_that_do_nothing():
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert ended, "the script left its process group behind"
    leave()
