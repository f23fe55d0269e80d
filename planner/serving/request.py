"""What is asked of `plan serve-memory`: a model as deployed, the cards, the lengths of requests and the adapters."""

from dataclasses import dataclass, replace

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.network import Network
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.models.spec import CAUSAL_LM, ModelSpec
from tuneplan.planner.serving.kv_cache import CacheFormat, KvCache
from tuneplan.planner.serving.read_kv import heads_of, language_part, read_kv
from tuneplan.planner.serving.server_memory import Server, Shape
from tuneplan.planner.serving.weight_formats import ServedWeights, WeightFormat, network_of, served_weights, sized_weights
from tuneplan.planner.target import Target

MOST_TOKENS = 2**24
MOST_ADAPTERS = 10**6
STUDY_MODELS = 20
"""Full checkpoints that the reference study sets against one base with adapters (Anyscale 2023, LoRA or full-parameter)."""
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as a server sees it.

    Attributes:
        id: hub id, or the path as given.
        cache: its KV cache.
        shape: widths that activations depend on.
        layers: decoder layers.
        attention_width: query heads x head size.
        spec: None where only the size of the weights is known.
        network: its parameters, None like `spec`.
        weights_bytes: size of the checkpoint where the user gave it.
        experts: whether a token passes only some of the weights.
    """

    id: str
    cache: KvCache
    shape: Shape
    layers: int
    attention_width: int
    spec: ModelSpec | None
    network: Network | None
    weights_bytes: int | None
    experts: bool

    def weights(self, format: WeightFormat, tensor_parallel: int) -> ServedWeights:
        """The weights as one GPU holds them."""
        if self.weights_bytes is not None:
            return sized_weights(self.weights_bytes, tensor_parallel, format.bits)
        assert self.network is not None
        return served_weights(self.network, format, tensor_parallel)


def served_model(id: str, config: ConfigReader, weights_bytes: int | None = None) -> ServedModel:
    """A model from its config.

    Args:
        id: as the report names it.
        config: its config.json.
        weights_bytes: of the deployed checkpoint; needed for families whose parameters tuneplan cannot count.

    Raises:
        InputError: the config cannot be read, or the family is not known and no size is given.
    """
    spec: ModelSpec | None = None
    if weights_bytes is None:
        try:
            spec = read_spec(id, config)
        except InputError as error:
            raise InputError(
                f"{error}. plan serve-memory can take the size of the deployed checkpoint instead: --weights-size 84GiB"
            ) from None
        if spec.task != CAUSAL_LM:
            raise InputError(
                f"{id} is no decoder but a model for {spec.task}; serve-memory plans the caches of decoders, and plan estimate "
                "has the size of its weights"
            )
    part = language_part(config)
    heads = part.integer("num_attention_heads", 0, minimum=0, maximum=2**16) or part.integer("n_head", 0, minimum=0)
    shape = Shape(
        part.integer("hidden_size", 0, minimum=0),
        part.integer("intermediate_size", 0, minimum=0),
        part.integer("vocab_size", config.integer("vocab_size", 0, minimum=0), minimum=0),
    )
    return ServedModel(
        id=id,
        cache=read_kv(config),
        shape=shape,
        layers=spec.num_hidden_layers if spec else 0,
        attention_width=heads * heads_of(part)[1] if spec else 0,
        spec=spec,
        network=network_of(spec) if spec else None,
        weights_bytes=weights_bytes,
        experts=any(part.has(key) for key in _EXPERT_KEYS),
    )


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """A question about one server.

    Attributes:
        model: what is served.
        target: the card or instance.
        weights: format of the linear layers.
        cache: dtype of the KV cache.
        server: how it runs.
        prompts: lengths of prompts to look at.
        output_tokens: of each answer.
        adapter: method of the adapters, or None.
        adapters: different adapters over the base.
        merged: whether one adapter is folded into the base, so that nothing separate is served.
        host_bytes: host memory for adapters, or None.
        purchase: kind of price.
        against: the model whose full copies base and adapters are set against; None for the same model.
        copies: how many full copies.
        emulator_layers: of an offsite-tuning emulator, or None.
    """

    model: ServedModel
    target: Target
    weights: WeightFormat
    cache: CacheFormat
    server: Server
    prompts: tuple[int, ...]
    output_tokens: int
    adapter: str | None = None
    adapters: int = 0
    merged: bool = False
    host_bytes: int | None = None
    purchase: str = "on_demand"
    against: ServedModel | None = None
    copies: int = STUDY_MODELS
    emulator_layers: int | None = None

    def check(self) -> None:
        """Raise InputError for amounts that make no sense or contradict each other."""
        self.server.check()
        for name, tokens in (*(("prompt-tokens", p) for p in self.prompts), ("output-tokens", self.output_tokens)):
            if not 1 <= tokens <= MOST_TOKENS:
                raise InputError(f"{name} {tokens} is not a length; use 1 to {MOST_TOKENS}")
        if not 0 <= self.adapters <= MOST_ADAPTERS:
            raise InputError(f"adapters {self.adapters} is not a number of adapters; use 0 to {MOST_ADAPTERS:,}")
        if self.adapters and self.adapter is None:
            raise InputError(f"{self.adapters} adapters of which kind? Add such as --adapter 'lora(r=16)'")
        if self.merged and self.adapters > 1:
            raise InputError(
                f"--merged folds one adapter into the base, and {self.adapters} adapters cannot share it; leave out --merged, or "
                "plan one server for each"
            )
        if self.merged and self.adapter is None:
            raise InputError("--merged needs to know what is folded in; add such as --adapter 'lora(r=16)'")
        ways = self.server.tensor_parallel
        instance = self.target.instance
        if instance is not None and ways > instance.gpu_count:
            raise InputError(f"{instance.id} has {instance.gpu_count} GPUs, not {ways}; lower tensor-parallel")
        if not 1 <= self.copies <= MOST_ADAPTERS:
            raise InputError(f"full-copies {self.copies} is not a number of models; use 1 to {MOST_ADAPTERS:,}")
        if self.emulator_layers is not None and self.model.spec is None:
            raise InputError("the layers of a model given by --weights-size cannot be counted; leave out --emulator-layers")
        if self.adapter is not None and self.model.spec is None:
            raise InputError("adapters of a model given by --weights-size cannot be counted; leave out --adapter")
        self.model.cache.check_heads(ways)

    def with_weights(self, format: WeightFormat) -> "ServeRequest":
        """The same with another weight format."""
        return replace(self, weights=format)
