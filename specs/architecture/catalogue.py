"""From what a user names to an `Architecture`: catalogue names and aliases, files, folders, inline mappings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from specs.architecture.families import ARCHITECTURES, FAMILIES, MULTIMODAL, UNSUPPORTED
from specs.architecture.families.multimodal import TOWERS
from specs.architecture.model import Architecture
from specs.architecture.reading import ConfigReader
from specs.errors import InputError, nearest_names

MODELS = Path(__file__).parent.parent / "catalog" / "models"
MAX_CONFIG_BYTES = 4 << 20

# What a repository's name may end in without another shape, and the quantisation that the ending promises.
SUFFIXES: dict[str, Mapping[str, Any] | None] = {
    "-instruct": None,
    "-hf": None,
    "-bf16": None,
    "-fp8": {"quant_method": "fp8"},
    "-fp8-dynamic": {"quant_method": "fp8"},
    "-fp8-static-pertensor": {"quant_method": "fp8"},
    "-nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "-fp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
}


@dataclass(frozen=True)
class ModelDescription:
    """One line of the catalogue."""

    name: str
    family: str
    layers: int
    parameters: int
    active_parameters: int
    max_position_embeddings: int
    native_weights_dtype: str
    aliases: tuple[str, ...]


def load_architecture(
    source: str | Path | Mapping[str, Any], *, base_dir: str | Path | None = None, name: str | None = None
) -> Architecture:
    """The architecture that `source` names.

    `source`: a catalogue name or alias (case does not matter), a config.json, a folder that holds one (both relative
    to `base_dir`), or the config itself. `name` overrides the name that the result carries. Raises `InputError` with
    the nearest names for an unknown model, and naming the key for a config that no family expresses.
    """
    if isinstance(source, Mapping):
        return _from_config(_finite(source), name or _inline_name(source))
    text = str(source)
    known = _resolve(text)
    if known is not None:
        found, quantisation = known
        return _from_catalogue(found, name or _spelled(text), quantisation)
    path = _existing_path(source, base_dir) if text.strip() else None
    if path is None:
        raise _unknown(text)
    config, content = _read_json(path)
    return _from_config(config, name or text, str(path), content)


def describe_models() -> list[ModelDescription]:
    """Every model of the catalogue, by name."""
    aliases = _index()["aliases"]
    described = []
    for model in model_names():
        architecture = _from_catalogue(model, model, None)
        count = architecture.parameter_count()
        described.append(
            ModelDescription(
                model,
                architecture.family,
                len(architecture.layers),
                count.total,
                count.active,
                architecture.max_position_embeddings,
                architecture.native_weights_dtype.value,
                tuple(sorted(alias for alias, target in aliases.items() if target == model)),
            )
        )
    return described


@cache
def model_names() -> tuple[str, ...]:
    """The names of the catalogue's models: ORG/NAME for a folder ORG__NAME."""
    return tuple(sorted(path.parent.name.replace("__", "/", 1) for path in MODELS.glob("*/config.json")))


@cache
def _index() -> dict[str, dict[str, str]]:
    """`aliases`: other name -> catalogue name or name of an unsupported model; `unsupported`: name -> model_type."""
    index: dict[str, dict[str, str]] = json.loads((MODELS / "aliases.json").read_text(encoding="utf-8"))
    return index


@cache
def _by_lower_case() -> dict[str, str]:
    """Every known name in lower case -> its own spelling."""
    index = _index()
    return {name.lower(): name for name in (*index["unsupported"], *index["aliases"], *model_names())}


def _spelled(name: str) -> str:
    """The name as the catalogue spells it, with its organisation; what only a suffix rule knows stays as written."""
    full = _with_organisation(name)
    return _by_lower_case().get(full.lower(), full)


def _with_organisation(name: str) -> str:
    """A name without ORG/ gets that of the only known model so called."""
    if "/" in name:
        return name
    full = [known for known in _by_lower_case().values() if known.lower().endswith("/" + name.lower())]
    return full[0] if len(full) == 1 else name


def _resolve(name: str) -> tuple[str, Mapping[str, Any] | None] | None:
    """(catalogue name, quantisation that the suffix promises), or None for a name that is not known.

    A repository of nvidia/ that ends in a quantisation has the shape of the model of the same name elsewhere.
    """
    known = _by_lower_case()
    name = _with_organisation(name)
    if name.lower() in known:
        spelled = known[name.lower()]
        return _index()["aliases"].get(spelled, spelled), None
    organisation, slash, model = name.lower().rpartition("/")
    if not slash:
        return None
    for suffix, quantisation in SUFFIXES.items():
        if not model.endswith(suffix):
            continue
        base = model.removesuffix(suffix)
        owners = {organisation}
        if organisation == "nvidia":
            owners |= {full.split("/")[0] for full in known if full.split("/")[1] == base}
        for owner in sorted(owners, key=lambda one: one != organisation):
            inner = _resolve(f"{owner}/{base}")
            if inner is not None:
                return inner[0], quantisation or inner[1]
        if organisation == "nvidia":  # -Instruct-FP8: the base name is found once the next suffix is off
            inner = _resolve(f"nvidia/{base}")
            if inner is not None:
                return inner[0], quantisation or inner[1]
    return None


def _from_catalogue(model: str, name: str, quantisation: Mapping[str, Any] | None) -> Architecture:
    unsupported = _index()["unsupported"].get(model)
    if unsupported is not None:
        raise _unsupported(unsupported, name)
    config, content = _read_json(MODELS / model.replace("/", "__", 1) / "config.json")
    if quantisation is not None:
        config = {**config, "quantization_config": dict(quantisation)}
    return _from_config(config, name, f"catalogue:{model}", content)


def _from_config(
    config: Mapping[str, Any], name: str, file: str | None = None, content: str | None = None
) -> Architecture:
    reader = ConfigReader(config, name, file, content)
    family = config.get("model_type")
    if family is None:
        raise reader.missing("model_type")
    if not isinstance(family, str):
        raise reader.error("model_type", "is not a name", _families())
    if family not in FAMILIES:
        raise _unsupported(family, name, reader)
    if family not in MULTIMODAL:
        for tower in ("text_config", *TOWERS):
            if config.get(tower):
                raise reader.error(tower, "makes this a multimodal model, which is not expressed here", "a text model")
    classes = config.get("architectures")
    if classes is not None and (not isinstance(classes, list) or ARCHITECTURES[family] not in classes):
        raise reader.error("architectures", f"is {classes!r}", f"{ARCHITECTURES[family]}, as {family} has it")
    return FAMILIES[family](reader)


def _families() -> str:
    return "one of the families " + ", ".join(sorted(FAMILIES))


def _unsupported(family: str, name: str, reader: ConfigReader | None = None) -> InputError:
    reason = UNSUPPORTED.get(family)
    message = f"model {name!r} is of the family {family!r}, which this version does not express"
    if reason:
        message += f" ({reason})"
    elif reader is not None and reader.config.get("text_config"):
        message += " (a multimodal model)"
    nearest = nearest_names(family, FAMILIES, 2)
    if reader is None:
        return InputError(message, field="architecture", expected=_families(), nearest=nearest)
    return reader.error("model_type", message, _families(), nearest)


def _unknown(name: str) -> InputError:
    index = _index()
    names = (*model_names(), *index["aliases"])
    by_tail = {full.split("/")[1]: full for full in reversed(names)}
    nearest = nearest_names(name, names) or tuple(by_tail[tail] for tail in nearest_names(name.split("/")[-1], by_tail))
    return InputError(
        f"{name[:200]!r} is no model of the catalogue, and no such file or folder exists",
        field="architecture",
        expected="a name of `capstan catalog`, a config.json, or a folder that holds one",
        nearest=nearest,
    )


def _existing_path(source: str | Path, base_dir: str | Path | None) -> Path | None:
    path = Path(source) if base_dir is None else Path(base_dir) / source
    try:
        if path.is_dir():
            path = path / "config.json"
            if not path.is_file():
                raise InputError("the model's folder holds no config.json", file=str(path.parent))
        return path if path.is_file() else None
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL in it, is no path
        return None


def _read_json(path: Path) -> tuple[Mapping[str, Any], str]:
    file = str(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError("is too large for a config", file=file, expected=f"at most {MAX_CONFIG_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=file) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", file=file) from None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise InputError(f"the key {key!r} stands twice", file=file, field=key)
            found[key] = value
        return found

    try:
        config = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON ({error})", file=file, line=getattr(error, "lineno", None)) from None
    if not isinstance(config, dict):
        raise InputError(f"holds {type(config).__name__}", file=file, expected="the config.json of a model")
    return _finite(config, file), text


def _finite(config: Mapping[str, Any], file: str | None = None) -> Mapping[str, Any]:
    """The config with infinities as 1e308 (as newer configs write them), so that it can stand in a document."""

    def clean(value: Any, key: str, depth: int) -> Any:
        if depth > 32:
            raise InputError("is nested too deeply", file=file, field=key)
        if isinstance(value, float):
            if value != value:
                raise InputError("is not a number (NaN)", file=file, field=key)
            return max(-1e308, min(1e308, value))
        if isinstance(value, Mapping):
            return {str(name): clean(inner, str(name), depth + 1) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [clean(inner, key, depth + 1) for inner in value]
        if value is None or isinstance(value, str | int):
            return value
        raise InputError(f"is a {type(value).__name__}", file=file, field=key, expected="a value of JSON")

    cleaned: dict[str, Any] = clean(config, "architecture", 0)
    return cleaned


def _inline_name(config: Mapping[str, Any]) -> str:
    name = config.get("_name_or_path") or config.get("model_type")
    return name if isinstance(name, str) else "inline"
