"""Settings dataclasses as Dagster config: the Launchpad shows the same fields and defaults.

A dataclass says each setting once (name, type, default, meaning); nothing is repeated here.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import dagster as dg

from atft_model.config import PRESETS, RunConfig, convert, unknown_key
from atft_model.errors import InputError

T = TypeVar("T")


def fields_of(cls: type) -> dict[str, dg.Field]:
    """One optional Dagster field per setting of a flat dataclass, with its default and meaning."""
    return {
        field.name: dg.Field(
            _dagster_type(hint),
            is_required=False,
            default_value=_plain(field.default),
            description=field.metadata.get("doc"),
        )
        for field, hint in _settings(cls)
    }


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass from a Dagster config that ``fields_of`` described."""
    hints = get_type_hints(cls)
    return cls(**{key: convert(value, hints[key], key) for key, value in values.items()})


def build_part(cls: type[T], values: Mapping[str, Any]) -> T:
    """The same where the config holds the fields of other dataclasses too."""
    names = get_type_hints(cls)
    return build(cls, {key: value for key, value in values.items() if key in names})


def run_config_fields() -> dict[str, dg.Field]:
    """The training settings: sections as nested tables; a field that is not given has no value.

    Its default depends on the preset, so the description names it for each preset.
    """
    sections = {}
    for section, hint in get_type_hints(RunConfig).items():
        fields = {
            field.name: dg.Field(
                _dagster_type(kind),
                is_required=False,
                description=f"{field.metadata['doc']} Default: {_defaults(section, field)}.",
            )
            for field, kind in _settings(hint)
        }
        sections[section] = dg.Field(dg.Shape(fields), is_required=False, description=hint.__doc__)
    return sections


def check_run_config(job: dg.JobDefinition, config: Mapping[str, Any]) -> None:
    """Refuses run config that the whole job does not know, with the nearest name.

    Executing a selection checks that selection's part alone: what is misspelt elsewhere, such as
    an asset's name, would be dropped in silence.

    Raises:
        InputError: the first fault, in one line.
    """
    fields: Any = job.run_config_schema.run_config_schema_type.fields  # type: ignore[attr-defined]
    try:
        dg.validate_run_config(job, dict(config))
    except dg.DagsterInvalidConfigError as error:
        fault = error.errors[0]
        if not fault.reason.name.endswith("NOT_DEFINED"):
            raise InputError(f"run config: {' '.join(fault.message.split())}") from None
        for level in fault.stack.levels:
            fields = fields[level].config_type.fields
        data: Any = fault.error_data
        name = data.field_names[0] if hasattr(data, "field_names") else data.field_name
        where = ": ".join(["run config", *filter(None, [".".join(fault.stack.levels)])])
        raise unknown_key(where, name, list(fields)) from None
    # Dagster lets any name of an asset pass.
    assets = list(fields["ops"].config_type.fields)
    for name in config.get("ops") or {}:
        if name not in assets:
            raise unknown_key("run config: ops", name, assets)


def _defaults(section: str, field: dataclasses.Field) -> str:
    """The default for each preset, once where they agree."""
    by_preset = {
        name: preset.get(section, {}).get(field.name, field.default)
        for name, preset in PRESETS.items()
    }
    values = list(by_preset.values())
    if all(value == values[0] for value in values):
        return f"{values[0]}"
    return ", ".join(f"{name} {value}" for name, value in by_preset.items())


def _settings(cls: type) -> list[tuple[dataclasses.Field, Any]]:
    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _dagster_type(hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return dg.Enum(f"Choice_{'_'.join(map(_identifier, arguments))}",
                       [dg.EnumValue(str(value)) for value in arguments])  # fmt: skip
    if origin in (types.UnionType, Union):
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        return dg.Noneable(_dagster_type(inner))
    if origin is tuple:
        return dg.Array(_dagster_type(arguments[0]))
    return {int: int, float: float, str: str, bool: bool}[hint]


def _identifier(value: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
