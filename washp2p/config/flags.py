"""The configuration as flags of a command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from washp2p.config.config import KINDS, RunConfig, options
from washp2p.config.options import flag, key_of, required
from washp2p.config.presets import ADAMS, MEANS, PRESETS
from washp2p.config.sections import METHODS, MODELS, plugins
from washp2p.errors import UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from dataclasses import Field

TITLES = {
    "": "the run",
    "method": "the method",
    "exchange": "the exchange",
    "training": "training",
    "operation": "operation",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option. Flags that are not given are left to `RunConfig.resolve`."""
    groups = {section: parser.add_argument_group(title) for section, title in TITLES.items()}
    for section, option in options():
        key = key_of(option)
        default = _default(option)
        groups[section].add_argument(
            f"--{flag(key)}",
            dest=key,
            type=KINDS[str(option.type)][-1],
            metavar=_metavar(option),
            help=option.metadata["help"] + (f" (default: {default})" if default else ""),
        )


def _metavar(option: Field[Any]) -> str:
    key = key_of(option)
    choices = option.metadata["choices"]
    if key == "method":
        choices = (*METHODS, *sorted(plugins().names))
    if key == "model":
        choices = MODELS
    return "{" + ",".join(choices) + "}" if choices else flag(key).replace("-", "_").upper()


def _default(option: Field[Any]) -> str:
    """The default of `option` in words, for a help text.

    It lists the values by data set, optimizer or method where they differ. It is empty if the
    option is required.
    """
    if required(option):
        return ""
    key = key_of(option)
    presets = {
        name: values[key] for name, values in (PRESETS | ADAMS | MEANS).items() if key in values
    }
    alike = {value: [k for k, v in presets.items() if v == value] for value in presets.values()}
    found = ", ".join(f"{value} for {' and '.join(keys)}" for value, keys in alike.items())
    if presets.keys() == PRESETS.keys():
        return found
    return f"{found}, else {option.default}" if found else str(option.default)


def config_from(
    parsed: argparse.Namespace, known: RunConfig | None = None, *, free: Sequence[str] = ()
) -> RunConfig:
    """The configuration from parsed flags; or `known`, if the given flags agree with it.

    Options named in `free` may differ: the given flags replace their values in `known`. Raises
    UsageError.
    """
    given = {key: getattr(parsed, key) for key in (key_of(each) for _, each in options())}
    if known is None:
        return RunConfig.resolve(**given)
    there = known.to_wire()
    for key, value in given.items():
        if value is not None and value != there[key] and key not in free:
            raise UsageError(
                f"--{flag(key)} is {value}; the run there has {there[key]}: leave the "
                "flag out to go on with it, or choose another --run-dir"
            )
    return known.with_options(**{key: given[key] for key in free if given[key] is not None})
