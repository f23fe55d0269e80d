"""Spaces of methods: which parts, of which sizes, in which layers. Searches over parts walk them; a space is data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from tuneplan.planner.errors import InputError
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.methods.method import Method

MOST_CANDIDATES = 2000


@dataclass(frozen=True, slots=True)
class Choice:
    """A part that a candidate may have.

    Attributes:
        part: the part with fixed options, as on the command line.
        option: what sets its size; "" where it has no size.
        values: of the option; None leaves the part out.
    """

    part: str
    option: str = ""
    values: tuple[float | str | None, ...] = (None, "")

    def texts(self) -> list[str]:
        """The part at each of its sizes; "" where it is left out."""
        return ["" if value is None else _with(self.part, self.option, value) for value in self.values]


@dataclass(frozen=True, slots=True)
class Space:
    """Candidates: every combination of the choices, in each set of layers.

    Attributes:
        choices: parts.
        layers: sets of layers for all parts together, in the words of their option `layers`; "" for every layer.
        paper: authors, year and title.
        leaves_out: what the paper's search does besides.
    """

    choices: tuple[Choice, ...]
    layers: tuple[str, ...] = ("",)
    paper: str = "none: your own"
    leaves_out: str = ""

    def candidates(self) -> Iterator[Method]:
        """The methods of the space, without that of no parts. Raises InputError for a part that does not exist or fit."""
        for texts in product(*[choice.texts() for choice in self.choices]):
            given = [text for text in texts if text]
            for layers in self.layers if given else ():
                yield parse("+".join(_with(text, "layers", layers) if layers else text for text in given))

    @property
    def size(self) -> int:
        """Combinations, before layers are left out."""
        count = len(self.layers)
        for choice in self.choices:
            count *= len(choice.values)
        return count


_DEPTHS = ("", "1/2-2/2", "3/4-4/4", "0/2-1/2")

SPACES: dict[str, Space] = {
    "autopeft": Space(
        (
            Choice("bottleneck_adapter(mh_adapter=false)", "reduction_factor", (None, 1024, 256, 64, 16)),
            Choice("parallel_bottleneck", "reduction_factor", (None, 1024, 256, 64, 16)),
            Choice("prefix_tuning(past_key_values=false)", "num_virtual_tokens", (None, 1, 8, 64)),
        ),
        _DEPTHS,
        "Zhou et al. 2024, AutoPEFT: Automatic Configuration Search for Parameter-Efficient Fine-Tuning, section 3.1",
        "Bayesian optimization of the score; each layer switched by itself: here four sets of layers",
    ),
    "noah": Space(
        (
            Choice("lora(target_modules=q_proj,v_proj)", "r", (None, 1, 5, 10, 50, 100)),
            Choice("bottleneck_adapter(mh_adapter=false)", "reduction_factor", (None, 768, 150, 75, 15, 8)),
            Choice("prompt_tuning", "num_virtual_tokens", (None, 1, 5, 10, 50, 100)),
        ),
        ("",),
        "Zhang, Zhou and Liu 2022, Neural Prompt Search (NOAH), section 3.2",
        "the supernet and its evolutionary search; prompts in every layer: here before the first",
    ),
    "s3pet": Space(
        (
            Choice("lora", "r", (None, 1, 2, 4, 8)),
            Choice("bottleneck_adapter", "reduction_factor", (None, 512, 128, 32)),
            Choice("ln_tuning"),
            Choice("bitfit"),
        ),
        ("",),
        "Hu et al. 2022, Sparse Structure Search for Delta Tuning, section 4",
        "the gate of each position, trained by its gradient: here a part is in all layers or in none",
    ),
}


def own_space(table: Mapping[str, Any], origin: str) -> Space:
    """A user's space: a list `choice` of tables with `part`, `option` and `values`, and a list `layers`.

    A value of false leaves the part out. Raises InputError for anything else, and for more candidates than MOST_CANDIDATES.
    """
    unknown = sorted(set(table) - {"choice", "layers"})
    given, layers = table.get("choice"), table.get("layers", [""])
    if unknown or not isinstance(given, list) or not given or not _texts(layers):
        what = f"{unknown[0]!r} is no key of a space" if unknown else "a space is a list [[choice]], and layers = ['', '1/2-2/2']"
        raise InputError(f"{origin}: {what}; it has choice (part, option, values) and layers")
    space = Space(tuple([_choice(item, origin) for item in given]), tuple(layers))
    if space.size > MOST_CANDIDATES:
        raise InputError(f"{origin}: {space.size} combinations are more than {MOST_CANDIDATES}; give fewer values or layers")
    return space


def _choice(item: object, origin: str) -> Choice:
    if not isinstance(item, dict) or not isinstance(item.get("part"), str) or set(item) - {"part", "option", "values"}:
        raise InputError(f"{origin}: a choice has part = 'lora', option = 'r' and values = [false, 4, 8], not {item!r}")
    if "option" not in item and "values" not in item:
        return Choice(item["part"])
    option, values = item.get("option"), item.get("values")
    if not isinstance(option, str) or not isinstance(values, list) or not values:
        raise InputError(
            f"{origin}: the choice {item['part']!r} needs both option and values, such as option = 'r', values = [4, 8]"
        )
    if not all(value is False or (isinstance(value, int | float | str) and value is not True) for value in values):
        raise InputError(f"{origin}: values of {item['part']!r} are numbers or text, or false to leave the part out")
    return Choice(item["part"], option, tuple([None if value is False else value for value in values]))


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _with(part: str, option: str, value: object) -> str:
    """A part's text with one more option."""
    if not option:
        return part
    head, bracket, rest = part.partition("(")
    return f"{head}({rest[:-1]},{option}={value})" if bracket else f"{head}({option}={value})"
