"""All files of an export: the tool's own, the plan they were made from, and the task that rents the machine."""

from tuneplan.planner.errors import InputError
from tuneplan.planner.export.job import Export, ExportJob
from tuneplan.planner.export.registry import writer
from tuneplan.planner.models.spec import CAUSAL_LM
from tuneplan.planner.report import document
from tuneplan.planner.report.json_report import plan_json
from tuneplan.planner.training.settings import BITSANDBYTES

PLAN = "plan.json"


def bundle(job: ExportJob, format_name: str, engine: str | None = None, skypilot: bool = False) -> Export:
    """Everything that goes into the folder.

    Args:
        job: the plan.
        format_name: a name of the registry.
        engine: ddp, fsdp or deepspeed instead of what the plan suggests.
        skypilot: also a SkyPilot task.

    Raises:
        UnknownNameError: there is no such format.
        InputError: the tool cannot do what the plan says; the option is named.
    """
    objective = job.settings.objective
    if not objective.plain:
        raise InputError(
            f"plan export writes supervised fine-tuning, and the plan is for --training {objective.name}; plan without it, and "
            "set TRL's own options for it"
        )
    if job.settings.kernels != BITSANDBYTES:
        raise InputError(
            f"no exported job patches its model, and the plan counts --kernels {job.settings.kernels}; plan without it, or call "
            "tuneplan.kernels.patch in a script of your own"
        )
    spec = job.plan.request.spec
    if spec.task != CAUSAL_LM:
        raise InputError(
            f"plan export writes supervised fine-tuning of causal language models, and {spec.id} is planned for {spec.task}; "
            "plan estimate and plan have its memory, time and cost"
        )
    made = writer(format_name)(job, engine)
    files, gaps = dict(made.files), list(made.gaps)
    if skypilot:
        from tuneplan.planner.export import skypilot as sky

        files[sky.CONFIG], more = sky.write(job)
        gaps += more
    request = job.plan.request.to_json()
    files[PLAN] = document.text({"source": "planned", "request": request, "gaps": gaps, **plan_json(job.plan)}) + "\n"
    return Export(files, tuple(gaps), made.main)
