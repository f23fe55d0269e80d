"""The figures of docs/any-model.md: a model that a family mirrors, planned by it and as a search plans models without a family.

    PYTHONPATH=src python docs/traced_plans.py CONFIG [LENGTH]

CONFIG is the path of a config.json; LENGTH is 2048 unless given. What is not in the cache yet is traced, for which the extra
`profile` is needed.
"""

import sys

from tuneplan.planner.memory import step_memory
from tuneplan.planner.methods.compose import parse
from tuneplan.planner.models.config import ConfigReader, read_config_file
from tuneplan.planner.models.network import Network, build
from tuneplan.planner.models.registry import read_spec
from tuneplan.planner.replay import replay
from tuneplan.planner.target import targets
from tuneplan.planner.timing.step_time import step_time
from tuneplan.planner.training.optimizers import find
from tuneplan.planner.training.settings import Settings
from tuneplan.planner.training.sharding import SINGLE, Sharding
from tuneplan.profiling.fallback.prepare import traced_spec

METHODS = ("full", "lora", "qlora")
LAYOUTS = (
    (SINGLE, "adamw", False),
    (SINGLE, "adamw_8bit", True),
    (Sharding(8), "adamw_fused", True),
    (Sharding(8, 2), "adamw", True),
    (Sharding(8, 3), "adamw", False),
)
BATCH = 4


def main(path: str, length: int) -> None:
    """Print a row for each method, checkpointing and layout: how far the traced plan is from the family's, in percent."""
    config = ConfigReader(read_config_file(path), path)
    specs = read_spec(path, config), traced_spec(path, config, "", "a family mirrors it")
    gpu = targets(["h100-80g"], None)[0].gpu
    assert gpu is not None
    print("method, checkpointing, layout, optimizer: peak [%], reserved [%], seconds [%]")
    for method in METHODS:
        for checkpointing in ("off", "non-reentrant"):
            for sharding, optimizer, accumulating in LAYOUTS:
                plain = Settings(
                    micro_batch_size=BATCH, seq_len=length, gradient_checkpointing=checkpointing, accumulating=accumulating
                )
                settings = sharding.settings(plain)

                def figures(network: Network, sharding: Sharding = sharding, settings: Settings = settings) -> list[float]:
                    chosen = find(optimizer)  # noqa: B023 (called at once)
                    peak = step_memory(network, settings, chosen, sharding).peak.peak_bytes
                    held = replay(network, settings, chosen).reserved_bytes if sharding is SINGLE else 1
                    return [peak, held, step_time(network, settings, chosen, gpu, layout=sharding).seconds or 1.0]

                ours, theirs = (figures(build(spec, parse(method), settings)) for spec in specs)
                off = [f"{100 * (b / a - 1):+.3f}" for a, b in zip(ours, theirs, strict=True)]
                print(f"{method}, {checkpointing}, {sharding.label}, {optimizer}: {', '.join(off)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2048)
