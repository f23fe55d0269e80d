"""Programs that several tests look at; each costs five traces."""

from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("transformers")

from tuneplan.planner.methods.compose import parse
from tuneplan.planner.training.settings import Settings
from tuneplan.profiling import small_models
from tuneplan.profiling.fallback.program import Program, program
from tuneplan.profiling.fallback.recorder import record
from tuneplan.profiling.subject import Subject

STEP = Settings(micro_batch_size=2, seq_len=256, gradient_checkpointing="off")


def subject(name: str, method: str, checkpointing: str = "off") -> Subject:
    """A small model's step; all are of known families, so that the ledger can be laid beside."""
    settings = replace(STEP, gradient_checkpointing=checkpointing)
    return Subject(name, small_models.config(name, num_hidden_layers=2), parse(method), settings=settings)


def programmed(of: Subject) -> Program:
    """Its program around 2 x 256."""
    return program(lambda batch, length: record(of, batch, length), 2, 256)


@pytest.fixture(scope="session")
def lora() -> tuple[Subject, Program]:
    """Llama with LoRA."""
    of = subject("llama", "lora")
    return of, programmed(of)


@pytest.fixture(scope="session")
def windowed() -> tuple[Subject, Program]:
    """Gemma 3, whose windows of 128 are not filled by short sequences, with QLoRA under checkpointing."""
    of = subject("gemma3_text", "qlora", "non-reentrant")
    return of, programmed(of)
