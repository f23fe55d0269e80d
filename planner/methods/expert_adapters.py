"""LoRA on weights that no module holds: the stacked experts of a layer, and its router.

Mirrors peft 0.21 tuners/lora/layer.py `ParamWrapper` and utils/transformers_weight_conversion.py `_convert_peft_config_moe`: for
the model types of `CONVERTED` PEFT turns the old names of experts (`gate_proj`, `w1`, ...) and `all-linear` into
`target_parameters`. The wrapper makes the adapted weight `W + scaling * B A` of all experts dense, twice a forward: once when
it is put in place, to check its shape, and once when the experts' code asks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tuneplan.planner.errors import InputError
from tuneplan.planner.graph import pointwise as pw
from tuneplan.planner.graph.tape import Gradient
from tuneplan.planner.graph.tensor import Size, Tensor, round_block
from tuneplan.planner.methods.targeted import ALL_LINEAR, PATTERN, compiled

if TYPE_CHECKING:
    from tuneplan.planner.methods.lora import Lora
    from tuneplan.planner.models.assembly import Assembly

MIXTRAL = {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
QWEN = {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
FUSED = "gate_up_proj"
CONVERTED = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), MIXTRAL),
    **dict.fromkeys(
        (
            "afmoe", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe",
            "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hunyuan_v1_moe", "longcat_flash",
            "mellum", "olmoe", "qwen3_moe", "qwen3_next", "solar_open",
        ),
        QWEN,
    ),
}  # fmt: skip
"""Old name -> parameter, by model type: `_MOE_TARGET_MODULE_MAPPING` with `_MODEL_TO_CONVERSION_PATTERN` of transformers."""

Weight: TypeAlias = Callable[[], Tensor]
"""A weight, made when it is asked for."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Parameters that PEFT wraps, matched at the end of their path, and the rank of those whose own is not `r`."""

    parameters: tuple[str, ...]
    ranks: tuple[tuple[str, int], ...]

    def rank(self, name: str, r: int) -> int | None:
        """The rank of a parameter, None where it is not wrapped."""
        if not any(name == target or name.endswith(f".{target}") for target in self.parameters):
            return None
        return dict(self.ranks).get(name.rsplit(".", 1)[-1], r)


def converted(model_type: str, module: str) -> bool:
    """Whether PEFT takes the name of a linear module for the old name of an expert's, and so leaves the module alone."""
    return module.rsplit(".", 1)[-1] in CONVERTED.get(model_type, {})


def targets_of(part: "Lora", model_type: str) -> Targets:
    """What PEFT wraps of a model type. Raises InputError for one of two names that lie in one parameter."""
    old_names = CONVERTED.get(model_type, {})
    asked = [old for old in old_names if any(asks(target, old) for target in part.target_modules)]
    fused = [old for old in asked if old_names[old] == FUSED]
    wanted = [old for old, new in old_names.items() if new == FUSED]
    if 0 < len(fused) < len(wanted):
        missing = ", ".join(old for old in wanted if old not in fused)
        raise InputError(f"target module {fused[0]!r} lies in one parameter with {missing}; PEFT adapts them together: name both")
    names = dict.fromkeys([*part.target_parameters, *[old_names[old] for old in asked]])
    return Targets(tuple(names), ((FUSED, part.r * len(fused)),) if fused else ())


def asks(target: str, old: str) -> bool:
    """Whether a target names an old name."""
    if target.startswith(PATTERN):
        paths = [f"model.layers.0.mlp.{old}"] if old == "gate" else [f"model.layers.0.mlp.experts.{old}"]
        return any(compiled(target).fullmatch(path) for path in paths)
    return target in (ALL_LINEAR, old) or target.endswith(f".{old}")


def check_options(part: "Lora", name: str) -> None:
    """Raise InputError for an option that `ParamWrapper` refuses."""
    given = {"lora_dropout": part.lora_dropout, "use_dora": part.use_dora, "gate": part.gate, "frozen_tasks": part.frozen_tasks}
    for option, value in given.items():
        if value:
            raise InputError(
                f"{option}={value} cannot be had on {name}, a parameter and no module, which PEFT adapts here; "
                "name target_modules of the attention, or leave the option out"
            )


def wrap(
    part: "Lora", model: "Assembly", name: str, rank: int, inner: Weight, shape: tuple[int, ...], transposed: bool
) -> Weight:
    """Put the wrapper in place: the low-rank factors and the check of its shape; gives the adapted weight when it is asked for.

    Args:
        part: the options.
        model: where ops are recorded.
        name: of the parameter within the layer.
        rank: of each expert.
        inner: the weight below.
        shape: `(experts, out, in)` or, transposed, `(experts, in, out)`; `(out, in)` for a router.
        transposed: see shape.
    """
    check_options(part, name)
    if len(shape) == 2:
        return _wrap_router(part, model, name, rank, inner, shape)
    experts, rows, columns = shape
    outs, ins = (columns, rows) if transposed else (rows, columns)
    kept = part.dtype(model)
    a = model.adapter(f"{name}.lora_A.weight", (rank * experts, ins), kept, trained=not part.freeze_a)
    b = model.adapter(f"{name}.lora_B.weight", (outs, rank * experts), kept)
    tape = model.tape
    dtype = model.stored_dtype(name)
    left = pw.cast(tape, _b_factor(model, b, (experts, outs, rank)), dtype)
    right = pw.cast(tape, tape.view("reshape", a, (experts, rank, ins)), dtype)
    model.wrapped += [left, right]
    weight_bytes = 2 * (left.nbytes + right.nbytes)
    flops: Size = 2 * experts * outs * ins * rank
    whole = inner()
    check = tape.fresh(shape, dtype, False)
    tape.record("check", (left, right), check, flops=flops, moved=2 * whole.nbytes)

    def adapted() -> Tensor:
        base = inner()
        out = tape.fresh(shape, dtype, True)
        factors = [
            Gradient(t, round_block(t.nbytes), scratch=round_block(t.nbytes), flops=flops, moved=out.nbytes + weight_bytes)
            for t in (left, right)
        ]
        moved = 2 * out.nbytes + weight_bytes
        tape.record("baddbmm", (base, left, right), out, saved=(left, right), gradients=tuple(factors), flops=flops, moved=moved)
        model.wrapped.append(out)
        return out

    return adapted


def _b_factor(model: "Assembly", b: Tensor, shape: tuple[int, ...]) -> Tensor:
    """B seen by expert, a view; its gradient is copied into the layout of the parameter."""
    return pw.transpose(model.tape, b, shape, copied=True)


def _wrap_router(part: "Lora", model: "Assembly", name: str, rank: int, inner: Weight, shape: tuple[int, ...]) -> Weight:
    """`Linear.get_delta_weight` and `_LoraParameterProxy`: the product of the factors, scaled, cast and added."""
    outs, ins = shape
    kept = part.dtype(model)
    a = model.adapter(f"{name}.lora_A.weight", (rank, ins), kept, trained=not part.freeze_a)
    b = model.adapter(f"{name}.lora_B.weight", (outs, rank), kept)
    tape = model.tape
    product = tape.fresh(shape, kept, True)
    flops: Size = 2 * outs * ins * rank
    gradients = tuple([Gradient(t, round_block(t.nbytes), flops=flops, moved=product.nbytes + t.nbytes) for t in (a, b)])
    tape.record("delta", (a, b), product, saved=(a, b), gradients=gradients, flops=flops)
    delta = pw.cast(tape, pw.scale(tape, product), model.stored_dtype(name))
    base = inner()
    tape.record("check", (delta,), tape.fresh(shape, delta.dtype, False), moved=2 * base.nbytes)
    model.wrapped.append(delta)
    return lambda: pw.add(tape, inner(), delta)
