"""A `RunConfig` from what a user wrote: plain data, or dotted settings of the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from scaling_jax.config import RunConfig
from scaling_jax.errors import RequestError, nearest


def parse_config(doc: Mapping[str, Any]) -> RunConfig:
    """A `RunConfig` from plain data.

    Raises `RequestError` naming each faulty field, with the nearest right name of an unknown one.
    """
    try:
        return RunConfig.model_validate(doc)
    except ValidationError as error:
        raise RequestError(explain(error)) from None


def override(config: RunConfig, settings: Mapping[str, str]) -> RunConfig:
    """The config with dotted fields replaced, as in `{"model.n_layer": "3"}`.

    A value is read as JSON where it is JSON and as a plain word otherwise. A field that maps names
    to values, `evaluation.corpora`, takes an object or one name, `evaluation.corpora.NAME`.
    Setting `model.d_model` without `model.d_ff` keeps the ratio d_ff / d_model, and another
    `optimizer.name` without `optimizer.momentum` brings the momentum that it has by default.
    Raises `RequestError`.
    """
    doc = config.model_dump(mode="json")
    ff_ratio = config.model.d_ff / config.model.d_model
    known = _dotted_fields(RunConfig)
    for dotted, text in settings.items():
        *parents, leaf = dotted.split(".")
        part = doc
        for name in parents:
            part = part.get(name) if isinstance(part, dict) else None
        named = ".".join(parents) in known and leaf != ""  # one entry of a mapping
        if not isinstance(part, dict) or not (leaf in part or named):
            raise RequestError(f"No config field {dotted!r}.{nearest(dotted, known)}")
        if isinstance(part.get(leaf), dict) and dotted not in known:
            inside = ", ".join(f"{dotted}.{name}" for name in part[leaf])
            raise RequestError(f"{dotted!r} is a group of fields; set one of: {inside}")
        try:
            part[leaf] = json.loads(text)
        except json.JSONDecodeError:
            part[leaf] = text
    d_model = doc["model"]["d_model"]
    if doc["optimizer"]["name"] != config.optimizer.name and "optimizer.momentum" not in settings:
        del doc["optimizer"]["momentum"]
    if "model.d_model" in settings and "model.d_ff" not in settings and isinstance(d_model, int):
        doc["model"]["d_ff"] = round(ff_ratio * d_model)
    return parse_config(doc)


def _dotted_fields(part: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, field in part.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += _dotted_fields(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def explain(error: ValidationError) -> str:
    """What is wrong with a config, a line a fault, with the nearest right name of a field."""
    known = _dotted_fields(RunConfig)
    lines = []
    for fault in error.errors(include_url=False):
        if fault["type"] == "default_factory_not_called":  # the fault is in the field it reads
            continue
        dotted = ".".join(str(place) for place in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"No config field {dotted!r}.{nearest(dotted, known)}")
        else:
            whole_part = isinstance(fault["input"], Mapping)  # a fault between fields names them
            message = fault["msg"].removeprefix("Value error, ")
            if fault["type"] == "value_error" and whole_part:
                lines.append(message)
            else:
                lines.append(
                    f"{dotted}: {message}" + ("" if whole_part else f" (got {fault['input']!r})")
                )
    return "\n".join(lines)
