"""Offsite-tuning: what the owner of a model sends to the owner of the data, and gets back.

Xiao et al. 2023, Offsite-Tuning (arXiv:2302.04870), section 3: the first and last layers are the adapter, which is trained;
of the layers between, a uniformly chosen part is the emulator, which is frozen. Embeddings and head go along, frozen.
"""

from dataclasses import dataclass

from tuneplan.planner.errors import InputError
from tuneplan.planner.models.network import Network

ADAPTER_LAYERS = 2
"""Layers at each end: `student_l_pad` and `student_r_pad` are 2 in the scripts of mit-han-lab/offsite-tuning."""


@dataclass(frozen=True, slots=True)
class Offsite:
    """Sizes in bytes, 16 bits a weight.

    Attributes:
        adapter_bytes: sent both ways.
        emulator_bytes: the layers between, those that were kept.
        rest_bytes: embeddings, head and last norm.
        full_bytes: of the whole model.
        kept_layers: of the emulator.
    """

    adapter_bytes: int
    emulator_bytes: int
    rest_bytes: int
    full_bytes: int
    kept_layers: int

    @property
    def sent_bytes(self) -> int:
        """What the owner of the data receives."""
        return self.adapter_bytes + self.emulator_bytes + self.rest_bytes


def offsite(network: Network, layers: int, kept_layers: int, adapter_layers: int = ADAPTER_LAYERS) -> Offsite:
    """Sizes of adapter and emulator.

    Args:
        network: of the whole model.
        layers: decoder layers.
        kept_layers: of the middle, after layer-drop; the paper keeps 8 of 20 of OPT-1.3B and 18 of 28 of OPT-6.7B.
        adapter_layers: at each end.

    Raises:
        InputError: more layers than there are.
    """
    middle = layers - 2 * adapter_layers
    if adapter_layers < 1 or not 0 <= kept_layers <= middle:
        raise InputError(
            f"{adapter_layers} adapter layers at each end and {kept_layers} kept between do not fit {layers} layers; "
            f"keep 0 to {max(0, middle)}"
        )
    layer = 2 * sum(p.numel // p.count for p in network.parameters if "*" in p.name)
    rest = 2 * sum(p.numel for p in network.parameters if "*" not in p.name)
    return Offsite(2 * adapter_layers * layer, kept_layers * layer, rest, layers * layer + rest, kept_layers)
