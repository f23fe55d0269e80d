"""Record what a training step with the `adapters` library allocates, for tests that run without the library.

    python tests/golden/record_adapters.py    in an environment of its own: pip install adapters==1.3.0 torch (CPU)

The newest release of the library pins an older transformers (4.57), whose step differs from the one that the ledger mirrors in
parts that have nothing to do with adapters. So each case is recorded with the adapter, and one with the norms trained instead
of any adapter; the tests hold the differences. Models are tiny and on the CPU; nothing of the repository but the tracker is used.
"""

import json
import sys
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from tuneplan.profiling.tracker import StorageTracker

FOLDER = Path(__file__).parent / "adapters"
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 1000,
}
BATCH, LENGTH = 2, 256
CASES = {
    "houlsby": adapters.DoubleSeqBnConfig,
    "pfeiffer": adapters.SeqBnConfig,
    "parallel_adapter": adapters.ParBnConfig,
    "compacter": adapters.CompacterConfig,
    "compacter_plus": adapters.CompacterPlusPlusConfig,
    "prefix_tuning": lambda: adapters.PrefixTuningConfig(flat=True),
    "lora": adapters.LoRAConfig,
    "ia3": adapters.IA3Config,
    "mam": adapters.MAMConfig,
    "unipelt": adapters.UniPELTConfig,
}


def record(config: Any) -> dict[str, Any]:
    """Trained parameters, and bytes live at the peak and at the end of the second step's forward."""
    settings = LlamaConfig(**SIZES)
    settings._attn_implementation = "eager"
    settings.use_cache = False
    with torch.device("cpu"):
        model = LlamaForCausalLM._from_config(settings, dtype=torch.float32)
    if config is not None:
        adapters.init(model)
        model.add_adapter("case", config=config)
        model.train_adapter("case")
        model.set_active_adapters("case")
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "norm" in name
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.long, device="cpu")
    tracker = StorageTracker("cpu")
    tracker.watch([*model.parameters(), *model.buffers(), ids])
    optimizer = torch.optim.AdamW(trained, foreach=True)
    with tracker:
        for _ in range(2):
            tracker.events.clear()
            tracker.phase = "forward"
            loss = model(input_ids=ids, labels=ids).loss
            forward = tracker.live_bytes
            tracker.phase = "backward"
            loss.backward()
            loss = loss.detach()
            tracker.phase = "optimizer_step"
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    weights = sum(-(-p.numel() * p.element_size() // 512) * 512 for p in model.parameters())
    return {
        "trainable": sum(p.numel() for p in trained),
        "weight_bytes": weights,
        "forward_end_bytes": forward,
        "peak_bytes": max(event.live_bytes for event in tracker.events),
        "names": sorted({name.split("case.")[-1] for name, p in model.named_parameters() if p.requires_grad}),
    }


if __name__ == "__main__":
    versions = {"adapters": adapters.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    base = {"config": SIZES, "batch": BATCH, "length": LENGTH, "dtype": "fp32", "attention": "eager", "versions": versions}
    for case, make in {"none": lambda: None, **CASES}.items():
        try:
            result = record(make())
        except Exception as error:
            print(case, type(error).__name__, str(error)[:200])
            continue
        (FOLDER / f"{case}.json").write_text(json.dumps({**base, **result}, indent=1) + "\n", encoding="utf-8")
        print(case, result["trainable"], result["forward_end_bytes"], result["peak_bytes"])
