"""Objects by name: of this package's tables, or of a package of one's own, as `module:object`. Imports no torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeGuard, get_type_hints

from unlabeled.errors import UserError, did_you_mean, nearest


def is_dotted(name: object) -> TypeGuard[str]:
    """Return whether `name` is of the form `module:object`."""
    return isinstance(name, str) and ":" in name


def load_object(name: str, table: Mapping[str, str] | None = None) -> Any:
    """Return the object of a table's name or of `module:object`. Raises UserError with the cure."""
    path = (table or {}).get(name, name)
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise UserError(f"'{path}' is not of the form module:object")
    if not all(part.isidentifier() for part in module.split(".")):  # a path, or relative to nothing
        raise UserError(f"'{path}' cannot be imported: '{module}' is no module; write package.module:object, with dots "
                        "and without .py, and put the package's folder on PYTHONPATH")
    try:
        holder = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"'{path}' cannot be imported: there is no module '{error.name}'; install it, or put its "
                            "folder on PYTHONPATH") from error
        raise UserError(f"'{path}' cannot be imported: {module} needs '{error.name}', which is missing; install it"
                        ) from error
    except UserError:
        raise
    except Exception as error:  # whatever the module does when it is imported
        said = (str(error).strip() or "no reason given").splitlines()[0]
        raise UserError(f"'{path}' cannot be imported: {module} raises {type(error).__name__}: {said}") from error
    try:
        loaded = getattr(holder, attribute)
    except AttributeError as error:
        names = [key for key in vars(holder) if not key.startswith("_")]
        raise UserError(f"'{path}' cannot be imported: {module} has no '{attribute}'."
                        + did_you_mean(nearest(attribute, names), f"Known: {', '.join(names)}")) from error
    if not callable(loaded):
        raise UserError(f"'{path}' must be a function or a class, but is a {type(loaded).__name__}")
    return loaded


def refuse_other_arguments(called: Any, name: str, *arguments: str) -> None:
    """Raise UserError if an object cannot be called with so many positional arguments, given by their names."""
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # one without a signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise UserError(f"'{name}' cannot be called as {name.partition(':')[2]}({', '.join(arguments)}): {error}"
                        ) from error


def refuse_unknown_options(key: str, called: Any, name: str, options: Mapping[str, Any]) -> None:
    """Raise UserError for the first of `options`, which stand at `key`, that calling an object does not take."""
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):  # one without a signature
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for option in options:
        if option not in known:
            raise UserError(f"{key}.{option}: '{name}' has no such option."
                            + did_you_mean(nearest(option, known), f"Known: {', '.join(known)}"))


def settings_of(name: str, base: type) -> Any:
    """Return the class of settings of a `module:object`: the type of its first argument, below `base`.

    Raises UserError if it says none.
    """
    called = load_object(name)
    try:
        first = next(iter(inspect.signature(called).parameters))
        settings = get_type_hints(called)[first]
    except (TypeError, ValueError, NameError, KeyError, StopIteration):
        settings = None
    if not (isinstance(settings, type) and issubclass(settings, base)):
        raise UserError(f"'{name}' must be a function whose first argument has the type of its settings, a class below "
                        f"{base.__module__}.{base.__name__}")
    return settings
