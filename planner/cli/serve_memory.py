"""`plan serve-memory`: what a tuned model takes once it is served."""

from datetime import date
from typing import Any

import click

from tuneplan.planner.cli.options import json_option, load_model, model_option, stack
from tuneplan.planner.errors import InputError
from tuneplan.planner.report import document
from tuneplan.planner.serving.kv_cache import BLOCK_TOKENS, CACHE_FORMATS, find_cache_format
from tuneplan.planner.serving.request import STUDY_MODELS, ServeRequest, served_model
from tuneplan.planner.serving.server_memory import MAX_BATCHED_TOKENS, MAX_SEQUENCES, UTILISATION, Server
from tuneplan.planner.serving.weight_formats import FORMATS, find_format
from tuneplan.planner.target import Target, of_memory, targets
from tuneplan.planner.units import parse_bytes

serving_options = stack(
    model_option,
    click.option("--gpu", "gpu_name", default=None, metavar="G", help="GPU or instance."),
    click.option(
        "--gpu-memory", default=None, metavar="SIZE", help="Memory of a card that is not known, such as 24GiB: no time."
    ),
    click.option("--weights", default="bf16", show_default=True, metavar="FORMAT", help=f"One of {', '.join(FORMATS)}."),
    click.option("--weights-size", default=None, metavar="SIZE", help="Size of the deployed checkpoint, for models not known."),
    click.option("--kv-dtype", default="bf16", show_default=True, metavar="DTYPE", help=f"One of {', '.join(CACHE_FORMATS)}."),
    click.option("--prompt-tokens", default="1024", show_default=True, metavar="N,N", help="Lengths of prompts to look at."),
    click.option("--output-tokens", type=int, default=256, show_default=True, help="Length of an answer."),
    click.option("--tensor-parallel", type=int, default=1, show_default=True, help="GPUs that share the model."),
    click.option("--utilisation", type=float, default=UTILISATION, show_default=True, help="Share of the card for the server."),
    click.option("--max-num-seqs", type=int, default=MAX_SEQUENCES, show_default=True, help="Sequences of one step."),
    click.option("--max-batched-tokens", type=int, default=MAX_BATCHED_TOKENS, show_default=True, help="Tokens of one forward."),
    click.option("--block-size", type=int, default=BLOCK_TOKENS, show_default=True, help="Tokens of a block of the cache."),
    click.option("--kv-alignment", type=int, default=1, show_default=True, help="Bytes to which a token in a layer is rounded."),
    click.option("--cuda-graphs/--no-cuda-graphs", default=True, show_default=True, help="Whether decoding is captured."),
    click.option("--adapter", default=None, metavar="METHOD", help="What was tuned, such as 'lora(r=16)'."),
    click.option("--adapters", type=int, default=None, help="Different adapters over the base.  [default: 1 with --adapter]"),
    click.option("--merged", is_flag=True, help="The adapter is folded into the base."),
    click.option("--host-memory", default=None, metavar="SIZE", help="Host memory for adapters, such as 256GiB."),
    click.option("--against", default=None, metavar="M", help="Model whose full copies base and adapters are set against."),
    click.option("--full-copies", type=int, default=STUDY_MODELS, show_default=True, help="How many full copies."),
    click.option(
        "--emulator-layers", type=int, default=None, help="Sizes of offsite-tuning with so many layers between the ends."
    ),
    click.option("--spot", is_flag=True, help="Spot prices instead of on demand."),
)


@click.command(name="serve-memory")
@serving_options
@json_option
def command(as_json: bool, **given: Any) -> int:
    """Serving: weights as deployed, KV cache, how many requests fit, adapters, speed and cost.

    \b
    Examples:
      plan serve-memory --model 8b --gpu a100-80g
      plan serve-memory --model 70b --gpu p4de.24xlarge --tensor-parallel 4 --weights awq --kv-dtype fp8
      plan serve-memory --model 7b --gpu rtx-4090 --adapter "lora(r=16)" --adapters 50 --host-memory 64GiB
      plan serve-memory --model ./deepseek/config.json --weights-size 640GiB --gpu h200 --tensor-parallel 8
    """  # noqa: D301 (click reads the escape)
    from tuneplan.planner.serving.answer import answer

    result = answer(request_of(given), date.today())
    if as_json:
        from tuneplan.planner.report.serving_json import serve_json

        click.echo(document.text(serve_json(result)))
    else:
        from tuneplan.planner.report.serving import serve_report
        from tuneplan.planner.report.terminal import console

        console().print(serve_report(result))
    return 0 if result.fits else 1


def request_of(given: dict[str, Any]) -> ServeRequest:
    """The request of the command line's words. Raises InputError and the loader's errors."""
    size = parse_bytes(given["weights_size"]) if given["weights_size"] is not None else None
    adapters = given["adapters"]
    if adapters is None:
        adapters = 1 if given["adapter"] is not None else 0
    return ServeRequest(
        model=served_model(*load_model(given["model"]), size),
        target=_target(given),
        weights=find_format(given["weights"]),
        cache=find_cache_format(given["kv_dtype"]),
        server=Server(
            utilisation=given["utilisation"],
            tensor_parallel=given["tensor_parallel"],
            block=given["block_size"],
            max_sequences=given["max_num_seqs"],
            max_batched_tokens=given["max_batched_tokens"],
            cuda_graphs=given["cuda_graphs"],
            alignment=given["kv_alignment"],
        ),
        prompts=_lengths(given["prompt_tokens"]),
        output_tokens=given["output_tokens"],
        adapter=given["adapter"],
        adapters=adapters,
        merged=given["merged"],
        host_bytes=parse_bytes(given["host_memory"]) if given["host_memory"] is not None else None,
        against=served_model(*load_model(given["against"])) if given["against"] is not None else None,
        copies=given["full_copies"],
        emulator_layers=given["emulator_layers"],
        purchase="spot" if given["spot"] else "on_demand",
    )


def _target(given: dict[str, Any]) -> Target:
    if given["gpu_memory"] is not None:
        if given["gpu_name"] is not None:
            raise InputError("--gpu and --gpu-memory both name a card; give one of them")
        return of_memory(parse_bytes(given["gpu_memory"]), None)
    if given["gpu_name"] is None:
        raise InputError("name a card: --gpu a100-80g or an instance; or --gpu-memory 24GiB (plan gpus)")
    found = targets([given["gpu_name"]], None)
    if len(found) != 1:
        raise InputError(f"--gpu {given['gpu_name']} names {len(found)} cards; name one")
    return found[0]


def _lengths(text: str) -> tuple[int, ...]:
    try:
        lengths = tuple(dict.fromkeys(int(item) for item in text.split(",")))
    except ValueError:
        raise InputError(f"--prompt-tokens {text[:60]!r} is not a list of lengths; write such as 512,4096") from None
    if len(lengths) > 20:
        raise InputError(f"--prompt-tokens has {len(lengths)} lengths; give at most 20")
    return lengths
