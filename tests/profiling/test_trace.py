"""Traces of the real code: their document, their agreement with the planner, and the ways around what meta tensors cannot do."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from traced import small

from tuneplan.planner.errors import InputError
from tuneplan.planner.estimate import Estimate, estimate
from tuneplan.planner.graph.tensor import CATEGORIES
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.request import Request
from tuneplan.planner.training.optimizers import OPTIMIZERS
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import trace as tracing
from tuneplan.profiling.subject import Subject
from tuneplan.profiling.trace import Traced, trace
from tuneplan.profiling.verify import verify

pytestmark = pytest.mark.traced

STEP = Settings(micro_batch_size=2, seq_len=128, gradient_checkpointing="off")
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "target_modules": ["q_proj", "v_proj"]}


def traced(method: str = "lora", config: dict[str, Any] | None = None, settings: Settings = STEP, **more: Any) -> Traced:
    """A small model's trace."""
    return trace(Subject("small", config or small(), parse(method), settings=settings, **more))


def estimated(method: str = "lora", settings: Settings = STEP) -> Estimate:
    """The same, estimated."""
    spec = read_spec("small", ConfigReader(small(), "small"))
    return estimate(Request(spec, parse(method), settings, OPTIMIZERS["adamw"]), advice=False)


def shape(document: Any) -> Any:
    """The keys of a document, all the way down."""
    return {key: shape(value) for key, value in document.items()} if isinstance(document, dict) else None


def test_one_document_for_estimated_and_traced() -> None:
    """The keys of a traced document are those of an estimated one; `basis` and `request` say how each came about."""
    ours, theirs = estimated().to_json(), traced().to_json()
    for name in ("basis", "request", "savings"):
        ours.pop(name), theirs.pop(name, None)

    assert shape(ours) | {"peak": None} == shape(theirs) | {"peak": None}
    assert shape(ours["peak"]) == shape(theirs["peak"])
    assert theirs["source"] == "traced"


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_components_sum_to_the_peak(method: str) -> None:
    """What is live at the peak is the peak."""
    document = traced(method).to_json()
    components = {name: size for name, size in document["components"].items() if name in CATEGORIES}

    assert document["peak"]["allocated_bytes"] == sum(components.values())
    assert document["peak"]["reserved_bytes"] + document["components"]["runtime"] == document["peak"]["device_bytes"]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", ["off", "non-reentrant"])
def test_components_are_those_of_the_ledger(method: str, checkpointing: str) -> None:
    """Component by component the trace and the ledger agree within 1 % of the peak."""
    settings = replace(STEP, gradient_checkpointing=checkpointing)
    found = verify(estimated(method, settings), traced(method, settings=settings))

    assert abs(found.peak.percent) < 0.1
    for gap in found.components:
        assert abs(gap.difference_bytes) < 0.01 * found.peak.traced_bytes, gap.name


def test_modules_keep_what_the_ledger_says() -> None:
    """Within a layer every projection keeps exactly the bytes that the ledger counts."""
    gaps = {gap.name: gap for gap in verify(estimated(), traced()).modules}
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        assert gaps[name].estimated_bytes == gaps[name].traced_bytes > 0


def test_reserved_memory_agrees_with_the_planners_replay() -> None:
    """The trace replayed and the ledger replayed reserve the same within 5 %; they load the model in different orders."""
    planned, real = estimated("full"), traced("full")

    assert real.reserved is not None
    assert real.reserved_bytes == pytest.approx(planned.reserved_bytes, rel=0.05)
    assert real.reserved_bytes >= real.peak.peak_bytes


@pytest.mark.parametrize("how", [{}, {"expandable_segments": True}, {"empty_cache_steps": 1}])
def test_lengths_that_vary(how: dict[str, Any]) -> None:
    """Batches of five lengths: the allocated peak is the longest one's, and both replays reserve the same within 3 %."""
    lengths = (100, 180, 128, 90, 170)
    settings = replace(STEP, seq_len=max(lengths))
    spec = read_spec("small", ConfigReader(small(), "small"))
    request = Request(spec, parse("full"), settings, OPTIMIZERS["adamw"], batch_lengths=lengths, **how)
    planned = estimate(request, advice=False)
    real = traced("full", settings=settings, batch_lengths=lengths, **how)

    assert planned.allocated_bytes == pytest.approx(real.peak.peak_bytes, rel=0.001)
    assert planned.reserved_bytes == pytest.approx(real.reserved_bytes, rel=0.03)


def test_peft_configuration_instead_of_a_method() -> None:
    """An adapter_config.json gives the step of the part that it describes."""
    own = traced("lora(r=8,target_modules=q_proj,v_proj,lora_alpha=8)")
    given = traced("full", peft_config=LORA)

    assert own.counts == given.counts
    assert own.peak.peak_bytes == given.peak.peak_bytes


@pytest.mark.parametrize("kind", ["BOFT", "HRA", "LOKR", "LOHA", "OFT", "ROAD", "RANDLORA", "FOURIERFT"])
def test_tuners_that_only_peft_knows(kind: str) -> None:
    """Any tuner of PEFT can be traced, whatever its initialisation asks of meta tensors."""
    config = {"peft_type": kind, "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
    real = traced("full", peft_config=config)

    assert 0 < real.counts.trainable < real.counts.total / 5
    assert not real.extended_from


def test_a_tuner_that_needs_values_is_extended_over_layers() -> None:
    """SHiRA's sparse masks need values: two short models on the CPU, extended, and said so."""
    config = {"peft_type": "SHIRA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
    real = traced("full", peft_config=config)

    assert real.extended_from == (2, 3)
    assert "extended linearly" in real.warnings[0]
    assert real.reserved is None


@pytest.mark.parametrize("checkpointing", ["off", "non-reentrant"])
def test_extension_equals_the_whole(checkpointing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two and three layers of a LoRA model on CPU tensors, extended to six, are within 0.5 % of six on the meta device."""
    settings = replace(STEP, gradient_checkpointing=checkpointing)
    subject = Subject("small", small(num_hidden_layers=6), parse("lora"), settings=settings)
    whole = trace(subject)
    run, phases = tracing._extended(subject, ValueError("as if values were needed"))

    assert whole.counts == run.counts
    for name, phase in phases.items():
        assert phase.peak_bytes == pytest.approx(whole.phases[name].peak_bytes, rel=0.005), name


@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("masked-lm", {"model_type": "bert", "num_hidden_layers": 2}),
        ("sequence-classification", {"model_type": "roberta", "num_hidden_layers": 2}),
        ("seq2seq-lm", {"model_type": "t5", "num_layers": 2, "num_decoder_layers": 2, "decoder_start_token_id": 0}),
        ("image-classification", {"model_type": "vit", "num_hidden_layers": 2}),
        ("causal-lm", {"model_type": "gpt2", "n_layer": 2}),
        ("causal-lm", {"model_type": "mixtral", "num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512}),
        ("causal-lm", {"model_type": "gemma2", "num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512}),
    ],
)
def test_architectures_that_the_planner_does_not_know(task: str, config: dict[str, Any]) -> None:
    """Encoders, encoder-decoders, vision and mixtures of experts: whatever transformers can build."""
    real = traced("full", config, task=task)

    assert real.phases["backward"].peak_bytes > real.phases["load"].peak_bytes
    assert real.counts.trainable == real.counts.total


def test_sdpa_falls_back_where_an_architecture_has_none() -> None:
    """gpt-oss has no sdpa attention; the trace uses eager attention as transformers does, and says so."""
    config = {"model_type": "gpt_oss", "num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    real = traced("full", config | {"num_local_experts": 4, "num_attention_heads": 4, "num_key_value_heads": 2})

    assert "eager attention was used" in real.warnings[0]


def test_padding_keeps_the_mask() -> None:
    """A padded batch brings a mask, so attention keeps a bias in every layer."""
    assert traced("full", settings=replace(STEP, padded=True)).peak.peak_bytes > traced("full").peak.peak_bytes


def test_holders_name_module_op_and_line() -> None:
    """The largest activations of a LoRA step are found where they are made: a line of the modelling or PEFT code."""
    found = traced().holders("forward")
    activations = [h for h in found if h.category == "activations"]

    assert activations[0].size_bytes >= activations[1].size_bytes
    assert "layers.*" in activations[0].module
    assert activations[0].line.rpartition(":")[0].endswith(".py")


def test_what_python_searches_for_cycles_is_as_before() -> None:
    """A trace keeps older objects out of the search while it runs; what its process keeps out stays so."""
    traced()
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        traced()
        assert frozen >= gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_a_failed_step_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a forward has begun is over when its error comes out, even while somebody keeps the error."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    said: list[str] = []

    def begun() -> Iterator[None]:
        said.append("begun")
        try:
            yield
        finally:
            said.append("over")

    def forward(self: Any, hidden: Any) -> None:
        held = begun()  # as torch before 2.13 holds the hooks of a checkpoint
        next(held)
        raise RuntimeError("no")

    with monkeypatch.context() as broken:
        broken.setattr(LlamaMLP, "forward", forward)
        with pytest.raises(InputError, match="RuntimeError: no") as kept:
            traced()
        assert said.count("begun") == said.count("over") > 0
        assert kept.value.__cause__ is not None
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (lambda: Subject("x", {"model_type": "no_such_model"}), "cannot build 'no_such_model'"),
        (lambda: Subject("x", {"hidden_size": 64}), "no model_type"),
        (lambda: Subject("x", small(num_attention_heads=7)), "cannot"),
        (lambda: Subject("x", small(), peft_config={"peft_type": "MAGIC"}), "peft_type 'MAGIC' is not known"),
        (lambda: Subject("x", small(), peft_config={**LORA, "rank": 8}), "no option rank"),
        (lambda: Subject("x", small(), peft_config={**LORA, "target_modules": ["nothing"]}), "cannot apply LORA"),
        (lambda: Subject("x", small(), task="poetry"), "task 'poetry' is not known"),
        (lambda: Subject("x", small(), parse("lora"), peft_config=LORA), "both add adapters"),
        (lambda: Subject("x", small(), task="masked-lm"), "cannot build 'llama' for masked-lm"),
    ],
)
def test_what_cannot_be_traced(subject: Any, message: str) -> None:
    """What the libraries refuse is one line that names them."""
    with pytest.raises(InputError, match=message):
        trace(subject())


@pytest.mark.parametrize("task", ["sequence-classification", "masked-lm"])
def test_lora_on_an_encoder(task: str) -> None:
    """PEFT is told the task, so that a planner's method fits a classifier too."""
    real = traced("lora(target_modules=query,value)", {"model_type": "bert", "num_hidden_layers": 2}, task=task)

    assert 0 < real.counts.trainable < real.counts.total / 10
