"""Names of optimizers as other tools write them, and what the planner has for each."""

from tuneplan.planner.configs.section import Section
from tuneplan.planner.training.optimizers import ALIASES, OPTIMIZERS

HF_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_hf": "adamw_forloop",
    "adamw_torch_fused": "adamw_fused",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw_32bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "sgd": "sgd",
    "adafactor": "adafactor",
    "lion_32bit": "lion",
}
"""`OptimizerNames` of transformers 5.23 (and adamw_hf of 4.x, a loop over parameters) that the planner has."""

HF_OTHERS = (
    "adamw_torch_xla",
    "adamw_torch_npu_fused",
    "adamw_anyprecision",
    "adamw_torch_4bit",
    "adamw_torch_8bit",
    "ademamix",
    "adagrad",
    "ademamix_8bit",
    "lion_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "galore_adamw",
    "galore_adamw_8bit",
    "galore_adafactor",
    "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise",
    "galore_adafactor_layerwise",
    "lomo",
    "adalomo",
    "grokadamw",
    "schedule_free_radam",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "apollo_adamw",
    "apollo_adamw_layerwise",
    "stable_adamw",
)
"""The rest of `OptimizerNames`: known to transformers, not modelled."""

STAND_IN = "adamw_fused"


def read_optimizer(section: Section, key: str, default: str, default_of: str, others: tuple[str, ...] = ()) -> None:
    """Note the fact "optimizer" of a key with a name of `OptimizerNames`, or of a tool's own.

    One that the planner does not have is planned as STAND_IN, with a warning. `others`: names of the tool's own optimizers.

    Raises:
        InputError: a name that neither transformers nor the tool has.
    """
    here = {name for name in (*OPTIMIZERS, *ALIASES) if name not in HF_OPTIMIZERS and name not in HF_OTHERS}
    known = (*HF_OPTIMIZERS, *HF_OTHERS, *others)
    name = section.choice(key, known, default) or default
    found = HF_OPTIMIZERS.get(name) or (name if name in here else None)
    if found is None:
        section.facts.warn(f"{section.source(key)}: the optimizer {name} is not modelled; figures are those of {STAND_IN}")
        found = STAND_IN
    section.fact("optimizer", found, key, default_of)
