"""Writes planner/configs/keys/*.json: every key that each tool's configuration has, with its type and default.

Read from the tools' own source, out of wheels or sdists as `pip download --no-deps` leaves them; nothing of it is imported or
run. `python docs/config_keys.py FOLDER`; the versions are those of the files in the folder.
"""

import ast
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "planner" / "configs" / "keys"

CLASSES = {
    "transformers": ["TrainingArguments", "Seq2SeqTrainingArguments"],
    "trl": [
        "SFTConfig", "DPOConfig", "RewardConfig", "GRPOConfig", "KTOConfig", "RLOOConfig",
        "ModelConfig", "ScriptArguments", "DatasetMixtureConfig",
    ],
    "accelerate": ["ClusterConfig"],
    "axolotl": [
        "AxolotlInputConfig", "DeprecatedParameters", "FSDPConfig", "LISAConfig", "TRLConfig", "LoftQConfig", "PeftConfig",
    ],
    "llamafactory": ["ModelArguments", "DataArguments", "TrainingArguments", "FinetuningArguments", "GeneratingArguments"],
    "unsloth": ["Config", "DataConfig", "TrainingConfig", "LoraConfig", "LoggingConfig"],
    "deepspeed": [
        "DeepSpeedZeroConfig", "DeepSpeedZeroOffloadParamConfig", "DeepSpeedZeroOffloadOptimizerConfig",
        "DeepSpeedFP16Config", "DeepSpeedBF16Config",
    ],
    "peft": ["LoraConfig"],
}  # fmt: skip
"""The classes whose fields are keys of a file. A base class in another distribution is looked up in BASES."""
PREFERRED = {"llamafactory": "hparams/", "unsloth": "unsloth_cli/", "axolotl": "utils/schemas/", "peft": "tuners/lora/config"}
"""Where a class's name is used in several modules, the one whose path has this is meant."""
BASES = {"trl": "transformers", "llamafactory": "transformers"}


@dataclass
class Distribution:
    """The modules of a wheel or sdist."""

    name: str
    version: str
    texts: dict[str, str]

    def find(self, name: str) -> tuple[str, ast.ClassDef] | None:
        """A class by its name; the preferred module first, then the shortest path."""
        wanted = PREFERRED.get(self.name, "")
        found = [
            (path, node)
            for path, text in self.texts.items()
            if path.endswith(".py") and re.search(rf"^class {name}\b", text, re.M)
            for node in ast.parse(text).body
            if isinstance(node, ast.ClassDef) and node.name == name
        ]
        return min(found, key=lambda item: (wanted not in item[0], len(item[0]))) if found else None


def read(archive: Path) -> Distribution:
    """The Python modules and YAML files of an archive."""
    found = re.match(r"([A-Za-z0-9_]+)-([0-9][^-]*?)(?:-|\.tar\.gz)", archive.name)
    assert found is not None, f"{archive.name} is not named as distributions are"
    return Distribution(found[1], found[2], dict(_texts(archive)))


def _texts(archive: Path) -> Iterator[tuple[str, str]]:
    wanted = (".py", ".yaml")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                if name.endswith(wanted) and "/models/" not in name:
                    yield name, file.read(name).decode()
    else:
        with tarfile.open(archive) as file:
            for member in file.getmembers():
                content = file.extractfile(member) if member.name.endswith(wanted) else None
                if content is not None:
                    yield member.name, content.read().decode()


def fields(dist: Distribution, name: str, others: dict[str, Distribution]) -> dict[str, list[Any]]:
    """Fields of a dataclass or pydantic model, bases first: name -> [type, default]; a missing default is "required"."""
    found = dist.find(name)
    if found is None or (name == "TrainingArguments" and dist.name == "trl"):
        other = others.get(BASES.get(dist.name, ""))
        return fields(other, name, others) if other else {}
    result: dict[str, list[Any]] = {}
    for base in found[1].bases:
        base_name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
        if base_name and base_name != name and base_name not in ("BaseModel", "Generic"):
            if base_name == "BaseTrainingArguments":
                base_name = "Seq2SeqTrainingArguments"
            result.update(fields(dist, base_name, others))
    for node in found[1].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
            kind = ast.unparse(node.annotation)
            if "ClassVar" in kind or "InitVar" in kind:
                continue
            if (
                isinstance(node.annotation, ast.Subscript)
                and isinstance(node.annotation.slice, ast.Tuple)
                and kind.startswith("Annotated[")
            ):
                kind = ast.unparse(node.annotation.slice.elts[0])
            result[node.target.id] = [kind, _default(node.value)]
            alias = _keyword(node.value, "alias")
            if alias is not None:
                result[ast.literal_eval(alias)] = [kind, f"alias of {node.target.id}"]
    return result


def _keyword(value: ast.expr | None, name: str) -> ast.expr | None:
    if isinstance(value, ast.Call):
        return next((k.value for k in value.keywords if k.arg == name), None)
    return None


def _default(value: ast.expr | None) -> Any:
    """A default as JSON has it; what is no literal as its source."""
    if value is None:
        return "required"
    if isinstance(value, ast.Call) and ast.unparse(value.func) in ("field", "Field"):
        given = _keyword(value, "default") or (value.args[0] if value.args else None)
        factory = _keyword(value, "default_factory")
        if given is None:
            return f"{ast.unparse(factory)}()" if factory is not None else "required"
        value = given
    try:
        literal = ast.literal_eval(value)
        json.dumps(literal, allow_nan=False)
    except (ValueError, TypeError):
        return ast.unparse(value)[:80]
    return literal


def accelerate_sections(dist: Distribution) -> dict[str, dict[str, list[Any]]]:
    """Keys under fsdp_config, deepspeed_config and parallelism_config: options of `accelerate launch` with these prefixes."""
    launch = next(text for path, text in dist.texts.items() if path.endswith("commands/launch.py"))
    cluster = next(text for path, text in dist.texts.items() if path.endswith("commands/config/cluster.py"))
    options = set(re.findall(r'"--([a-z0-9_]+)"', launch))
    sections = {
        "fsdp_config": {o for o in options if o.startswith("fsdp_")},
        "parallelism_config": {o for o in options if o.startswith("parallelism_config_")},
        "deepspeed_config": set(),
    }
    for section in sections:
        sections[section] |= set(re.findall(rf'{section}\["([a-z0-9_]+)"\]', cluster))
    return {section: {name: ["", ""] for name in sorted(names)} for section, names in sections.items()}


def deepspeed_top(dist: Distribution) -> dict[str, list[Any]]:
    """Top-level keys of a DeepSpeed configuration: the names that runtime/constants.py defines, with their defaults."""
    wanted = ("runtime/constants.py", "runtime/zero/config.py", "profiling/constants.py")
    text = "\n".join(text for path, text in dist.texts.items() if path.endswith(wanted) and "/deepspeed/" in path)
    names = dict(re.findall(r"""^([A-Z0-9_]+) = ["']([a-z0-9_]+)["']""", text, re.M))
    defaults = dict(re.findall(r"^([A-Z0-9_]+)_DEFAULT = (.+)$", text, re.M))
    return {value: ["", defaults.get(key, "")] for key, value in names.items() if not key.endswith("_DEFAULT")}


def lora_targets(dist: Distribution) -> dict[str, Any]:
    """The modules that LoRA adapts by default, for each model type."""
    text = next(text for path, text in dist.texts.items() if path == "peft/utils/constants.py")
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING":
            found: dict[str, Any] = ast.literal_eval(node.value)
            return found
    raise SystemExit("peft: no default target modules")


def torchtune_keys(dist: Distribution) -> dict[str, dict[str, list[Any]]]:
    """Top-level keys that recipes read (`cfg.x`, `cfg.get("x", default)`) or that the shipped configs have."""
    read: dict[str, list[Any]] = {}
    for path, text in dist.texts.items():
        if path.startswith("recipes/") and path.endswith(".py"):
            for name in re.findall(r"\bcfg\.([a-z_0-9]+)", text):
                read.setdefault(name, ["", "required"])
            for name, default in re.findall(r'\bcfg\.get\(\s*"([a-z_0-9]+)"(?:,\s*(?:default=)?([^)\n]+?))?\s*,?\s*\)', text):
                read[name] = ["", default or None]
        elif path.startswith("recipes/configs") and path.endswith(".yaml"):
            for name in re.findall(r"^([a-z_0-9]+):", text, re.M):
                read.setdefault(name, ["", ""])
    for method in ("get", "pop", "keys"):
        read.pop(method, None)
    return {"recipe": dict(sorted(read.items()))}


def main(folder: Path) -> None:
    """Read every archive of a folder and write one file for each tool."""
    archives = [p for p in sorted(folder.iterdir()) if p.suffix == ".whl" or p.name.endswith(".tar.gz")]
    dists = {dist.name: dist for dist in (read(p) for p in archives if p.name.split("-")[0] in {*CLASSES, "torchtune"})}
    for name, dist in dists.items():
        groups = {cls: fields(dist, cls, dists) for cls in CLASSES.get(name, [])}
        if name == "accelerate":
            groups |= accelerate_sections(dist)
        if name == "peft":
            groups["lora_target_modules"] = lora_targets(dist)
        if name == "deepspeed":
            groups = {"top": deepspeed_top(dist), **groups}
        if name == "torchtune":
            groups = torchtune_keys(dist)
        empty = [group for group, keys in groups.items() if not keys]
        if empty:
            raise SystemExit(f"{name}: nothing found for {empty}")
        lines = [
            f'  "{group}": {{\n' + ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in keys.items()) + "\n  }"
            for group, keys in groups.items()
        ]
        body = f'{{\n  "tool": "{name}",\n  "version": "{dist.version}",\n' + ",\n".join(lines) + "\n}\n"
        json.loads(body)
        (TARGET / f"{name}.json").write_text(body)
        sys.stdout.write(f"{name} {dist.version}: {', '.join(f'{group} {len(keys)}' for group, keys in groups.items())}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
