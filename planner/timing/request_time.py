"""The step time of a request."""

from tuneplan.planner.models.network import Network
from tuneplan.planner.request import Request
from tuneplan.planner.timing.layout_time import Machines
from tuneplan.planner.timing.step_time import StepTime, step_time
from tuneplan.planner.timing.work import NetworkWork


def time_of(request: Request, network: Network, work: NetworkWork | None = None) -> StepTime:
    """Seconds of a whole step of a request that names a GPU.

    `network`: what one rank computes. `work`: of it, if it is known.
    """
    assert request.gpu is not None
    return step_time(
        network,
        request.settings,
        request.optimizer,
        request.gpu,
        layout=request.sharding,
        machines=Machines(request.gpus_of_a_node, request.network_bytes_per_second),
        experts_per_token=getattr(request.spec, "top_k", 0),
        gradient_accumulation_steps=request.gradient_accumulation_steps,
        work=work,
    )
