"""JSON Schemas of the data files."""

from tuneplan.hardware_profiles.schema import GpuModel, InstanceModel, json_schemas


def test_schemas_know_every_field() -> None:
    """Completion in an editor offers what the model accepts, and nothing else is allowed."""
    schemas = json_schemas()
    assert set(schemas["gpu.json"]["properties"]) == set(GpuModel.model_fields)
    assert set(schemas["instance.json"]["properties"]) == set(InstanceModel.model_fields)
    assert [schema["additionalProperties"] for schema in schemas.values()] == [False, False]
