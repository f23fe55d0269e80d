"""Real steps on this machine's CPU: what is reported, and what is kept when a step breaks off."""

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from traced import small  # noqa: E402

from tuneplan.planner.errors import InputError  # noqa: E402
from tuneplan.planner.graph.tensor import round_block  # noqa: E402
from tuneplan.planner.methods.compose import parse  # noqa: E402
from tuneplan.planner.training.settings import Settings  # noqa: E402
from tuneplan.profiling import measure as measuring  # noqa: E402
from tuneplan.profiling.build import build, transformers_model  # noqa: E402
from tuneplan.profiling.measure import measure  # noqa: E402
from tuneplan.profiling.quantize import quantize_4bit  # noqa: E402
from tuneplan.profiling.ranks import decoder_layers  # noqa: E402
from tuneplan.profiling.subject import Subject  # noqa: E402
from tuneplan.profiling.timeline import Timeline  # noqa: E402
from tuneplan.profiling.tracker import StorageTracker  # noqa: E402

CPU = torch.device("cpu")
TINY = small(hidden_size=64, intermediate_size=172, num_hidden_layers=2, num_attention_heads=4)
STEP = Settings(micro_batch_size=2, seq_len=16, attention="eager", gradient_checkpointing="off")
SUBJECT = Subject("tiny", TINY, parse("lora"), settings=STEP)


def test_document() -> None:
    """The common document: components of the tracked peak sum to it, nothing is claimed of reserved memory."""
    seen = measure(SUBJECT, CPU, 1, 3)
    document = seen.to_json()
    peak = document["peak"]

    assert "measured" == document["source"]
    assert peak["allocated_bytes"] == sum(document["components"].values())
    assert (None, None) == (peak["reserved_bytes"], peak["device_bytes"])
    assert ["load", "forward", "backward", "optimizer_step"] == list(document["phases"])
    assert 3 == len(document["timing"]["step_seconds"])
    assert document["tokens_per_second"] == pytest.approx(2 * 16 / document["step_seconds"])
    assert [0] == [rank["rank"] for rank in document["ranks"]]
    assert document["failure"] is None


def test_tokens_count_every_micro_batch() -> None:
    """Tokens per second are those of a whole step, all micro-batches of it."""
    seen = measure(replace(SUBJECT, gradient_accumulation_steps=3), CPU, 1, 1)
    document = seen.to_json()
    assert document["tokens_per_second"] == pytest.approx(3 * 2 * 16 / document["step_seconds"])


@pytest.mark.parametrize("precision", ["pure", "master-weights", "autocast"])
@pytest.mark.parametrize("loss", ["eager", "chunked"])
def test_losses_and_precisions(loss: str, precision: str) -> None:
    """Every loss and precision that a CPU can run gives a step."""
    settings = replace(STEP, loss=loss, precision=precision)
    assert measure(replace(SUBJECT, settings=settings), CPU, 1, 1).timing.step_seconds is not None


@pytest.mark.parametrize(("warmup", "steps", "option"), [(0, 1, "--warmup-steps 0"), (1, 0, "--steps 0"), (1, 10**9, "--steps")])
def test_impossible_numbers_of_steps(warmup: int, steps: int, option: str) -> None:
    """A steady step needs one before it, and a time needs one to be timed."""
    with pytest.raises(InputError, match=option):
        measure(SUBJECT, CPU, warmup, steps)


def break_after(calls: int, error: Exception) -> Any:
    """A step that works a few times, then fails in its backward."""
    real, count = measuring.run_step, [0]

    def step(built: Any, settings: Any, phase: Any, *rest: Any) -> None:
        count[0] += 1
        if count[0] > calls:
            phase("forward")
            phase("backward")
            raise error
        real(built, settings, phase, *rest)

    return step


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            "out_of_memory",
        ),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("CUDA error: unspecified launch failure"), "device_lost"),
    ],
)
def test_a_step_that_breaks_off_is_a_result(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str) -> None:
    """No memory, or no device any more: the phases and the times until then are kept, and the phase is named."""
    monkeypatch.setattr(measuring, "run_step", break_after(2, error))
    seen = measure(SUBJECT, CPU, 1, 5)

    assert seen.failure is not None
    assert (kind, "backward") == (seen.failure.kind, seen.failure.phase)
    assert 1 == len(seen.timing.steps)
    assert {"load", "forward", "backward", "optimizer_step"} == set(seen.phases)
    assert seen.failure.line in seen.to_json()["warnings"][0]
    assert "\n" not in seen.failure.line


def test_no_memory_while_loading_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that cannot even be built leaves a result without phases."""

    def no_memory(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measuring, "build", no_memory)
    document = measure(SUBJECT, CPU, 1, 1).to_json()

    assert ("out_of_memory", "load") == (document["failure"]["kind"], document["failure"]["phase"])
    assert (0, {}, None) == (document["peak"]["allocated_bytes"], document["phases"], document["parameters"])


def test_any_other_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library refuses is told in its words."""
    monkeypatch.setattr(measuring, "run_step", break_after(0, RuntimeError("shapes do\nnot match")))
    with pytest.raises(InputError, match="tiny cannot run: RuntimeError: shapes do not match"):
        measure(SUBJECT, CPU, 1, 1)


def test_quantizing_never_holds_the_dense_model() -> None:
    """A 4-bit model is made layer by layer: beyond what is packed, one dense layer and its scales at a time."""
    pytest.importorskip("bitsandbytes")
    config = small(num_hidden_layers=8, hidden_size=256, intermediate_size=704, vocab_size=256)
    model = transformers_model(config, "causal-lm", "eager", torch.bfloat16, "meta")
    with StorageTracker("cpu") as tracker:
        quantize_4bit(model, torch.bfloat16, device="cpu")
    held = Timeline.of(tracker).peak()
    layer = 256 * 704
    scales = 2 * 4 * layer // 64

    assert held.peak_bytes - held.end_bytes <= round_block(2 * layer) + 2 * round_block(scales)
    assert held.peak_bytes > 7 * layer


def test_tied_weights_stay_tied() -> None:
    """A 4-bit model whose head is its embedding gets one weight for both, as the traced one has."""
    pytest.importorskip("bitsandbytes")
    config = {**TINY, "tie_word_embeddings": True}
    model = build(Subject("tiny", config, parse("qlora"), settings=STEP), "eager", "cpu").model.get_base_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_longest_list_is_the_decoder() -> None:
    """Units of FSDP are the decoder's layers."""
    built = build(SUBJECT, "eager", "meta")
    assert ["LlamaDecoderLayer"] * 2 == [type(layer).__name__ for layer in decoder_layers(built.model)]
