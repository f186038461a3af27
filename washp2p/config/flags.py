"""The configuration as flags of a command line."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from washp2p.config.config import RunConfig, flag, plugins
from washp2p.config.presets import ADAMS, MEANS, PRESETS
from washp2p.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field. Flags that are not given are left to `RunConfig.resolve`."""
    group = parser.add_argument_group("the run")
    for option in fields(RunConfig):
        needed = option.name == "n"
        presets = {
            key: values[option.name]
            for key, values in (PRESETS | ADAMS | MEANS).items()
            if option.name in values
        }
        alike = {value: [k for k, v in presets.items() if v == value] for value in presets.values()}
        default = ", ".join(f"{value} for {' and '.join(keys)}" for value, keys in alike.items())
        if presets.keys() != PRESETS.keys() and not needed:
            default = f"{default}, else {option.default}" if default else str(option.default)
        choices = option.metadata["choices"]
        kind = {"int": int, "float": float, "str": str}[str(option.type)]
        parser_type: dict[str, Any] = {"type": kind}
        if choices:
            more = sorted(plugins().names) if option.name == "method" else ()
            parser_type["metavar"] = "{" + ",".join((*choices, *more)) + "}"
        else:
            parser_type["metavar"] = flag(option.name).replace("-", "_").upper()
        group.add_argument(
            f"--{flag(option.name)}",
            dest=option.name,
            help=option.metadata["help"] + ("" if needed else f" (default: {default})"),
            **parser_type,
        )


def config_from(
    options: argparse.Namespace, known: RunConfig | None = None, *, free: Sequence[str] = ()
) -> RunConfig:
    """The configuration from parsed flags; or `known`, if the given flags agree with it.

    Fields named in `free` may differ from it. Raises UsageError.
    """
    given = {f.name: getattr(options, f.name) for f in fields(RunConfig)}
    if known is None:
        return RunConfig.resolve(**given)
    for name, value in given.items():
        if value is not None and value != getattr(known, name) and name not in free:
            raise UsageError(
                f"--{flag(name)} is {value}; the run there has {getattr(known, name)}: leave the "
                "flag out to go on with it, or choose another --run-dir"
            )
    changed = {name: given[name] for name in free if given[name] is not None}
    return replace(known, **changed)
