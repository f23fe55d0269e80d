"""From facts to a configuration: what the tools make of everything that the files say together."""

from collections.abc import Collection
from typing import Any

from tuneplan.planner.configs.adapter_keys import to_method
from tuneplan.planner.configs.facts import Facts
from tuneplan.planner.configs.model_names import load_named, stored_dtype
from tuneplan.planner.configs.resolve_layout import buckets, layout, ranks_of
from tuneplan.planner.configs.training_config import TrainingConfig
from tuneplan.planner.configs.transformers_trainer import TRAINER
from tuneplan.planner.errors import InputError
from tuneplan.planner.graph.loss import LOSSES
from tuneplan.planner.methods.method import Method
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.lookup import load
from tuneplan.planner.training.objective import TRAININGS

PLAIN = (
    "seq_len",
    "micro_batch_size",
    "optimizer",
    "attention",
    "max_grad_norm",
    "use_cache",
    "empty_cache_steps",
)
"""Facts that are options as they are."""
ASSUMED_DTYPE = "bf16"
STAND_INS = {"trl": "liger"}
"""Losses that the planner may not have, and the closest one that it has."""


def resolve(facts: Facts, formats: dict[str, str], model: str | None = None, given: Collection[str] = ()) -> TrainingConfig:
    """The configuration.

    Args:
        facts: of all files.
        formats: the tool of each file.
        model: of the command line, instead of the files'.
        given: options of the command line, which nobody has to be told about.

    Raises:
        InputError: the model is not known, a method that cannot be, batches that contradict each other.
    """
    name, config = _model(facts, model)
    options: dict[str, Any] = {key: facts.get(key) for key in PLAIN if key in facts.found}
    sources = {key: facts.source(key) for key in options}
    _checkpointing(facts, options, sources)
    _batch(facts, options, sources)
    layout(facts, options, sources, "data_parallel" in given or "gpus" in given)
    buckets(facts, config, options, sources)
    _precision(facts, config, options, sources, "dtype" in given)
    _loss(facts, options, sources)
    if facts.get("padded") and options.get("micro_batch_size", 1) > 1:
        options["padded"], sources["padded"] = True, facts.source("padded")
    if facts.get("packing"):
        options["packing"], sources["packing"] = True, facts.source("packing")
        strategy = facts.get("packing_strategy")
        if strategy in ("bfd", "wrapped"):
            options["packing_strategy"], sources["packing_strategy"] = strategy, facts.source("packing_strategy")
    if "seq_len" not in options and "seq_len" not in given:
        facts.warn("no file says how long sequences are; give --seq-len")
    objective = facts.get("objective", "sft")
    _objective(facts, objective, options, sources)
    method = _method(facts, config)
    if not facts.has("adapter") and facts.source("adapter") in ("", TRAINER) and not {"method", "peft_config"} & set(given):
        now = "the default of --method" if method is None else method.name
        facts.warn(f"no file says what is trained; give --method, or an adapter_config.json (now {now})")
    return TrainingConfig(
        formats=formats,
        stack=", ".join(facts.stacks),
        model=name,
        method=method,
        options=options,
        amount={key: facts.get(key) for key in ("epochs", "max_steps") if key in facts.found},
        objective=objective,
        objective_options=dict(facts.objective_options),
        entries=tuple(facts.entries),
        warnings=tuple(facts.warnings),
        sources={
            **sources,
            **{key: facts.source(fact) for key, fact in (("model", "model"), ("method", "adapter")) if fact in facts.found},
        },
    )


def _model(facts: Facts, given: str | None) -> tuple[str | None, ConfigReader | None]:
    if given is not None:
        return given, load(given)[1]
    name = facts.get("model") or facts.get("adapter_base")
    if name is None:
        return None, None
    return load_named(name, facts, facts.source("model") or facts.source("adapter_base"))


def _method(facts: Facts, config: ConfigReader | None) -> Method | None:
    if "adapter" not in facts.found and "quantized" not in facts.found:
        return None
    adapter, quantized = facts.get("adapter"), facts.get("quantized")
    if quantized is not None and adapter is None:
        raise InputError(
            f"{facts.source('quantized')}: a quantized base cannot be trained itself. Add an adapter, or load it unquantized"
        )
    if config is None:
        return None
    model_type = config.mapping.get("model_type")
    narrow = facts.get("engine") == "deepspeed" and facts.get("mixed_precision") in ("bf16", "fp16")
    try:
        return to_method(adapter, quantized, model_type if isinstance(model_type, str) else "", narrow)
    except InputError as error:
        source = facts.source("adapter")
        raise InputError(f"{source}: {error}" if source else str(error)) from None


def _checkpointing(facts: Facts, options: dict[str, Any], sources: dict[str, str]) -> None:
    kind = facts.get("gradient_checkpointing")
    if kind is None:
        return
    options["gradient_checkpointing"] = kind != "off"
    options["reentrant"] = kind == "reentrant"
    sources["gradient_checkpointing"] = sources["reentrant"] = facts.source("gradient_checkpointing")


def _batch(facts: Facts, options: dict[str, Any], sources: dict[str, str]) -> None:
    """Accumulation, from the triangle global = micro x accumulation x ranks where a file gives the global batch."""
    ranks = ranks_of(facts) or 1
    micro, steps, whole = (facts.get(key) for key in ("micro_batch_size", "gradient_accumulation_steps", "global_batch_size"))
    if whole is not None and not (facts.has("gradient_accumulation_steps") and facts.has("micro_batch_size")):
        source = facts.source("global_batch_size")
        if facts.has("gradient_accumulation_steps") and micro is None:
            micro, rest = divmod(whole, steps * ranks)
            options["micro_batch_size"], sources["micro_batch_size"] = micro, source
        else:
            steps, rest = divmod(whole, (micro or 1) * ranks)
        if rest or not steps or not micro:
            raise InputError(f"{source}: a batch of {whole} cannot be split evenly over {ranks} GPUs. Correct the batch sizes")
        sources["gradient_accumulation_steps"] = source
    elif whole is not None and whole != (micro or 1) * (steps or 1) * ranks and facts.has("data_parallel"):
        raise InputError(
            f"{facts.source('global_batch_size')}: {whole} is not micro-batch {micro} x accumulation {steps} x {ranks} GPUs. "
            "Correct one of them"
        )
    if steps is not None:
        options["gradient_accumulation_steps"] = steps
        sources.setdefault("gradient_accumulation_steps", facts.source("gradient_accumulation_steps"))


def _precision(
    facts: Facts, config: ConfigReader | None, options: dict[str, Any], sources: dict[str, str], dtype_given: bool
) -> None:
    """Weights' dtype and how the step computes; see docs/configs.md for each tool's rule."""
    loaded, mixed, engine = facts.get("load_dtype"), facts.get("mixed_precision", "no"), facts.get("engine")
    launched = facts.get("launch_precision", "no")
    if mixed == "no" and launched != "no":  # the Trainer's own setting wins over accelerate's where it is on
        mixed = launched
        facts.set("mixed_precision", mixed, facts.source("launch_precision"))
    elif launched not in ("no", mixed):
        facts.warn(f"{facts.source('launch_precision')} says {launched}, and the Trainer's {mixed} wins")
    if mixed == "fp8":
        facts.warn(f"{facts.source('mixed_precision')}: products in fp8 are not modelled; figures are those of bf16 autocast")
        mixed = "bf16"
    if loaded in (None, "auto"):
        stored = stored_dtype(config) if config else None
        if stored is None and not dtype_given:
            facts.warn(f"neither file nor model says in which dtype weights are loaded; {ASSUMED_DTYPE} is taken (--dtype)")
        source = f"the checkpoint of {facts.get('model') or 'the model'}" if stored else "assumed"
        loaded, sources["dtype"] = stored or ASSUMED_DTYPE, source
    else:
        sources["dtype"] = facts.source("load_dtype")
    precision = facts.get("precision")
    if precision is None:
        if mixed == "no":
            precision = "pure"
        elif engine in ("deepspeed", "fsdp"):
            if engine == "fsdp" and loaded == "fp32" and facts.get("adapter") is not None:
                facts.warn(f"{sources['dtype']}: FSDP keeps the frozen weights in fp32 then; figures have them in {mixed}")
            loaded, precision = mixed, "master-weights"
            sources["dtype"] = facts.source("mixed_precision")
        else:
            precision = "autocast"
            if mixed == "fp16" and loaded == "bf16":
                facts.warn("weights are loaded in bf16, and autocast runs in fp16; figures are those of bf16, of the same size")
    options["dtype"], options["precision"] = loaded, precision
    sources["precision"] = facts.source("precision") or facts.source("mixed_precision") or "default"


def _objective(facts: Facts, objective: str, options: dict[str, Any], sources: dict[str, str]) -> None:
    """What is trained towards, as TRL's trainers do it; other tools' trainers are taken to do the same."""
    if objective in ("sft", "pretraining"):
        return
    source, given = facts.source("objective"), facts.objective_options
    if objective not in TRAININGS:
        facts.warn(f"{source}: the objective {objective} is not modelled; figures are of supervised fine-tuning on the batch")
        return
    options["training"], sources["training"] = objective, source
    if options.get("loss", "trl") not in ("eager", "trl"):
        facts.warn(f"{sources['loss']}: {objective} has a loss of its own in TRL, which is counted instead of {options['loss']}")
        del options["loss"], sources["loss"]
    if objective == "dpo" and given.get("precompute_ref_log_probs"):
        options["reference"], sources["reference"] = "precomputed", source
    if objective == "grpo":
        kept = "none"
        if given.get("beta"):
            kept = "model" if facts.get("adapter") is None else "adapters-off"
        options["reference"], sources["reference"] = kept, source
        for name, key in (("completion_length", "max_completion_length"), ("num_generations", "num_generations")):
            if given.get(key) is not None:
                options[name], sources[name] = given[key], source


def _loss(facts: Facts, options: dict[str, Any], sources: dict[str, str]) -> None:
    loss = facts.get("loss")
    if loss is None:
        return
    if loss not in LOSSES:
        stand_in = STAND_INS.get(loss, "eager")
        facts.warn(f"the loss {loss} ({facts.source('loss')}) is not modelled; figures are those of {stand_in}")
        loss = stand_in
    options["loss"], sources["loss"] = loss, facts.source("loss")
