"""Laws and limits of the clock: FLOPs against parameters, checkpointing, accumulation, launches, unfit cards."""

from dataclasses import replace

import pytest

from tuneplan.hardware_profiles.loader import find_gpu
from tuneplan.planner.graph.tensor import BITS
from tuneplan.planner.methods.full import Full
from tuneplan.planner.methods.lora import Lora
from tuneplan.planner.methods.method import Method
from tuneplan.planner.methods.part import Part
from tuneplan.planner.methods.quantized_base import QuantizedBase
from tuneplan.planner.models import lookup, network, registry
from tuneplan.planner.models.network import Network
from tuneplan.planner.timing import constants
from tuneplan.planner.timing.roofline import device_seconds, gpu_rates, larger
from tuneplan.planner.timing.step_time import StepTime, step_time
from tuneplan.planner.timing.work import Product, Work, network_work
from tuneplan.planner.training.optimizers import find
from tuneplan.planner.training.settings import Settings

FULL: tuple[Part, ...] = (Full(),)
LORA: tuple[Part, ...] = (Lora(r=8, target_modules=("q_proj", "v_proj")),)
QLORA: tuple[Part, ...] = (QuantizedBase(), *LORA)
PLAIN = Settings(micro_batch_size=4, seq_len=1024, gradient_checkpointing="off", attention="flash")


def build(parts: tuple[Part, ...], settings: Settings, model: str = "llama-2-7b") -> Network:
    """A model of the catalog under a method."""
    id, config = lookup.load(model)
    return network.build(registry.read_spec(id, config), Method("test", parts), settings)


def timed(
    parts: tuple[Part, ...],
    settings: Settings,
    gpu: str = "a100-80g",
    *,
    data_parallel: int = 1,
    zero_stage: int = 0,
    gradient_accumulation_steps: int = 1,
) -> StepTime:
    """The time of a step of Llama-2-7B with AdamW."""
    return step_time(
        build(parts, settings),
        settings,
        find("adamw"),
        find_gpu(gpu),
        data_parallel=data_parallel,
        zero_stage=zero_stage,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )


def attention_flops(settings: Settings) -> int:
    """Forward FLOPs of causal attention of Llama-2-7B: two products of half a square, 32 layers of width 4096."""
    return 2 * 2 * settings.micro_batch_size * settings.seq_len**2 * 4096 * 32 // 2


def matmul_weights(net: Network) -> int:
    """Weights that take part in a matrix product: all but norms and the embedding table."""
    return sum(p.numel for p in net.parameters if len(p.shape) > 1 and not p.name.startswith("model.embed_tokens"))


def test_full_step_is_six_flops_a_weight_and_token() -> None:
    """Forward 2, backward 4 FLOPs a weight and token, and 3.5 times the forward's attention: exactly."""
    net = build(FULL, PLAIN)
    tokens = PLAIN.micro_batch_size * PLAIN.seq_len
    expected = 6 * matmul_weights(net) * tokens + 7 * attention_flops(PLAIN) // 2
    assert expected == timed(FULL, PLAIN).flops


def test_lora_step_is_four_flops_a_frozen_weight_and_token() -> None:
    """A frozen weight costs no gradient of its own, adapters cost 6; the first layer's input needs no gradient."""
    net = build(LORA, PLAIN)
    tokens = PLAIN.micro_batch_size * PLAIN.seq_len
    adapters = sum(p.numel for p in net.parameters if p.adapter)
    frozen = matmul_weights(net) - adapters
    saved = 2 * tokens * (3 * 4096 * 4096 + 2 * 8 * 4096)
    expected = (4 * frozen + 6 * adapters) * tokens + 7 * attention_flops(PLAIN) // 2 - saved
    assert expected == timed(LORA, PLAIN).flops


def test_four_bits_do_not_change_flops() -> None:
    """QLoRA multiplies the same matrices as LoRA."""
    base = (QuantizedBase(prepare_kbit=False), *LORA)
    assert timed(LORA, PLAIN).flops == timed(base, PLAIN).flops


def test_doubling_the_batch_doubles_flops() -> None:
    """Matrix products are linear in the batch."""
    double = replace(PLAIN, micro_batch_size=8)
    assert 2 * timed(FULL, PLAIN).flops == timed(FULL, double).flops


def test_reentrant_checkpointing_adds_exactly_one_forward_of_the_layers() -> None:
    """What runs again is the layers' forward: everything but the embedding, the head and the loss."""
    settings = replace(PLAIN, gradient_checkpointing="reentrant")
    work = network_work(build(FULL, settings), settings)
    layers = 2 * 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) * 4 * 1024 + attention_flops(settings)
    assert layers == work.recompute.flops
    assert timed(FULL, PLAIN).flops + layers == timed(FULL, settings).flops


def test_non_reentrant_checkpointing_stops_before_the_last_projection() -> None:
    """Early stop: the down projection's output is not needed again, so it does not run again."""
    reentrant = replace(PLAIN, gradient_checkpointing="reentrant")
    early = replace(PLAIN, gradient_checkpointing="non-reentrant")
    whole = network_work(build(FULL, reentrant), reentrant).recompute.flops
    down = 2 * 32 * 4096 * 11008 * 4 * 1024
    assert whole - down == network_work(build(FULL, early), early).recompute.flops


def test_no_checkpointing_recomputes_nothing() -> None:
    """Without checkpointing no op runs twice."""
    work = network_work(build(FULL, PLAIN), PLAIN)
    assert Work() == work.recompute
    assert timed(FULL, PLAIN).recompute_seconds == 0.0


def test_accumulation_repeats_micro_batches_and_updates_once() -> None:
    """Four micro-batches take four forwards and backwards, plus the additions of gradients, and one update."""
    one, four = timed(FULL, PLAIN), timed(FULL, PLAIN, gradient_accumulation_steps=4)
    assert 4 * one.flops == four.flops
    assert 4 * one.forward_seconds == four.forward_seconds
    assert one.optimizer_seconds == four.optimizer_seconds
    added = 3 * 3 * sum(p.numel * BITS[p.storage] // 8 for p in build(FULL, PLAIN).parameters)
    bandwidth = find_gpu("a100-80g").bandwidth_bytes_per_second * constants.MEMORY.value
    assert four.backward_seconds == pytest.approx(4 * one.backward_seconds + added / bandwidth)


def test_a_step_is_never_faster_than_its_launches() -> None:
    """One sequence of 16 tokens on an H200 waits for the host."""
    time = timed(LORA, replace(PLAIN, micro_batch_size=1, seq_len=16), gpu="h200")
    assert time.bound == "launch"
    assert time.launch_share == 1.0
    assert time.seconds is not None
    assert time.seconds > time.forward_seconds + time.backward_seconds + time.optimizer_seconds


def test_large_batches_are_compute_bound() -> None:
    """Thirty-two sequences of 2048 tokens keep an A100's matrix units busy; MFU stays below what products reach."""
    time = timed(FULL, replace(PLAIN, micro_batch_size=32, seq_len=2048))
    assert time.bound == "compute"
    assert 0.4 < time.mfu < 0.87


def test_parts_sum_to_the_step() -> None:
    """Where the device is the limit the step is the sum of its parts."""
    time = timed(FULL, PLAIN, data_parallel=8, zero_stage=3)
    parts = time.forward_seconds + time.recompute_seconds + time.backward_seconds + time.optimizer_seconds
    assert time.seconds == pytest.approx(parts + time.communication_seconds)


def test_one_card_does_not_communicate() -> None:
    """A single rank has nobody to wait for, whatever the ZeRO stage."""
    assert timed(FULL, PLAIN, zero_stage=3).communication_seconds == 0.0


def test_paged_states_are_noted() -> None:
    """What paging costs is an upper bound, and the notes say so."""
    net = build(FULL, PLAIN)
    paged = step_time(net, PLAIN, find("paged_adamw_8bit"), find_gpu("a100-80g"))
    resident = step_time(net, PLAIN, find("adamw_8bit"), find_gpu("a100-80g"))
    assert any("paged" in note for note in paged.notes)
    assert () == resident.notes
    assert paged.optimizer_seconds > resident.optimizer_seconds


def test_tokens_per_second_count_all_ranks() -> None:
    """Eight ranks of DDP make at most eight times the tokens of one, and more than four times on NVLink."""
    one, eight = timed(LORA, PLAIN), timed(LORA, PLAIN, data_parallel=8)
    assert one.tokens_per_second is not None
    assert eight.tokens_per_second is not None
    assert 4 * one.tokens_per_second < eight.tokens_per_second <= 8 * one.tokens_per_second


def test_bf16_does_not_run_before_ampere() -> None:
    """A V100 and a T4 have no bf16 arithmetic: no time, and the reason says what to do."""
    for gpu in ("v100-32g", "t4"):
        time = timed(FULL, PLAIN, gpu=gpu)
        assert time.seconds is None
        assert time.tokens_per_second is None
        assert "no bf16 arithmetic; use fp16" in time.reason
        assert timed(FULL, replace(PLAIN, dtype="fp16"), gpu=gpu).seconds is not None


def test_no_rate_no_time() -> None:
    """A card without a sourced rate for the dtype gives a reason, not a guess."""
    time = timed(FULL, PLAIN, gpu="a4000")
    assert time.seconds is None
    assert "no bf16 peak rate with a source" in time.reason


def test_missing_fp32_rate_is_assumed_aloud() -> None:
    """LoRA in fp32 on an H200, whose fp32 rate has no source, takes a share of the 16-bit rate; full needs none."""
    assert any("no fp32 rate" in note for note in timed(LORA, PLAIN, gpu="h200").notes)
    assert () == timed(FULL, PLAIN, gpu="h200").notes


def test_fp32_adapters_run_at_the_fp32_rate() -> None:
    """PEFT's default keeps adapters in fp32: their products take longer than 16-bit ones of the same FLOPs."""
    narrow = (Lora(r=8, target_modules=("q_proj", "v_proj"), autocast_adapter_dtype=False),)
    wide, thin = timed(LORA, PLAIN), timed(narrow, PLAIN)
    assert wide.flops == thin.flops
    assert wide.forward_seconds > thin.forward_seconds


def test_dequantization_costs_time() -> None:
    """The same model in 4 bits takes longer: weights are dequantized in the forward and again in the backward."""
    base = (QuantizedBase(prepare_kbit=False), *LORA)
    work = network_work(build(base, PLAIN), PLAIN)
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert work.forward.dequantized == pytest.approx(2.766 * linear, rel=1e-3)
    assert work.backward.dequantized < work.forward.dequantized
    lora, qlora = timed(LORA, PLAIN).seconds, timed(base, PLAIN).seconds
    assert lora is not None
    assert qlora is not None
    assert qlora > lora


def test_a_pointwise_op_costs_its_bytes_alone() -> None:
    """Work without products takes bytes over bandwidth and no arithmetic."""
    gpu = find_gpu("a100-80g")
    seconds = device_seconds(Work(moved=2_039_000_000), gpu_rates(gpu, {"bf16"}))
    assert seconds.total == pytest.approx(1e-3 / constants.MEMORY.value)
    assert seconds.compute == 0.0


def test_nothing_costs_nothing() -> None:
    """Empty work takes no time."""
    assert device_seconds(Work(), gpu_rates(find_gpu("l4"), {"bf16"})).total == 0.0


def test_work_can_be_shared_between_cards() -> None:
    """A caller that times one network on many cards counts its work once."""
    net = build(QLORA, PLAIN)
    work = network_work(net, PLAIN)
    for name in ("a100-80g", "rtx-4090", "h200"):
        gpu = find_gpu(name)
        assert step_time(net, PLAIN, find("adamw"), gpu) == step_time(net, PLAIN, find("adamw"), gpu, work=work)


def test_arrays_give_what_single_sizes_give() -> None:
    """Arrays of FLOPs and bytes are timed elementwise: arithmetic limits one configuration, memory the other."""
    numpy = pytest.importorskip("numpy")
    rates = gpu_rates(find_gpu("a100-80g"), {"bf16"})
    flops, moved = numpy.array([10**12, 10**6]), numpy.array([10**6, 10**9])
    both = device_seconds(Work([Product(flops, moved, "bf16", False, 3)], moved), rates)
    for index in range(2):
        single = Work([Product(int(flops[index]), int(moved[index]), "bf16", False, 3)], int(moved[index]))
        one = device_seconds(single, rates)
        assert both.compute[index] == pytest.approx(one.compute)  # type: ignore[index]
        assert both.total[index] == pytest.approx(one.total)  # type: ignore[index]


def test_larger_takes_numbers_and_arrays() -> None:
    """The larger of two numbers; elementwise for arrays."""
    numpy = pytest.importorskip("numpy")
    assert larger(1.0, 2.0) == 2.0
    assert list(larger(numpy.array([1.0, 3.0]), 2.0)) == [2.0, 3.0]  # type: ignore[call-overload]
