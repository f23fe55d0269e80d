"""The step time of a request."""

from tuneplan.planner.models.network import Network
from tuneplan.planner.request import Request
from tuneplan.planner.timing.step_time import StepTime, step_time
from tuneplan.planner.timing.work import NetworkWork


def time_of(request: Request, network: Network, work: NetworkWork | None = None) -> StepTime:
    """Seconds of a whole step of a request that names a GPU. `work`: of the network, if it is known."""
    assert request.gpu is not None
    return step_time(
        network,
        request.settings,
        request.optimizer,
        request.gpu,
        data_parallel=request.sharding.data_parallel,
        zero_stage=request.sharding.zero_stage,
        gradient_accumulation_steps=request.gradient_accumulation_steps,
        work=work,
    )
