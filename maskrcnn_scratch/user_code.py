"""Objects of the user's own Python files: finds what ``my.py:Part`` names, and locates errors."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any


class PartNotFoundError(ValueError):
    """There is no such file, or no such name in it."""


class UserCodeError(RuntimeError):
    """The user's code raised an error; the message is one line, with file and line number."""


class _UserFileLoader(SourceFileLoader):
    """Marks the modules that ``find_part`` has read from a file."""


def find_part(reference: str) -> Any:
    """The class, function or object that ``file.py:Name`` or ``package.module:Name`` names.

    The folder of the file is added to ``sys.path``, as Python does for a script.

    Raises:
        PartNotFoundError: a reference of another form, no such file, or no such name in it.
        Exception: whatever the file raises when it is imported.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name.isidentifier():
        raise PartNotFoundError(f"{reference}: expected FILE.py:NAME or package.module:NAME")
    module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    if not hasattr(module, name):
        names = [known for known in vars(module) if not known.startswith("_")]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names) or 'no names'}"
        raise PartNotFoundError(f"{where} has no {name}: {hint}")
    return getattr(module, name)


def build_part(found: Any, arguments: Mapping[str, Any]) -> Any:
    """The part itself.

    A class, or a function whose required parameters are all in ``arguments``, is called with them.
    Any other function is the part, with ``arguments`` as keyword arguments. An object is the part.

    Raises:
        TypeError: arguments for an object.
        Exception: whatever the class or function raises.
    """
    if inspect.isclass(found) or (inspect.isroutine(found) and _is_factory(found, arguments)):
        return found(**arguments)
    if inspect.isroutine(found):
        return partial(found, **arguments) if arguments else found
    if arguments:
        raise TypeError(f"the part is an object of {type(found).__name__}: it takes no --args")
    return found


@contextmanager
def errors_in_one_line(reference: str) -> Iterator[None]:
    """Turns what the code of ``reference`` raises into a ``UserCodeError``.

    A ``PartNotFoundError`` passes.
    """
    try:
        yield
    except PartNotFoundError:
        raise
    except (Exception, SystemExit) as error:
        raise UserCodeError(locate(error) or f"{reference}: {_in_one_line(error)}") from error


def locate(error: BaseException) -> str | None:
    """``FILE.py, line N: TYPE: MESSAGE``, the innermost line of a file that ``find_part`` read.

    The line may be that of the error's cause. None if both come from elsewhere.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    for raised in filter(None, (error, error.__cause__)):
        for frame, line in reversed(list(walk_tb(raised.__traceback__))):
            if isinstance(frame.f_globals.get("__loader__"), _UserFileLoader):
                return f"{frame.f_code.co_filename}, line {line}: {_in_one_line(error)}"
    return None


def _in_one_line(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return type(error).__name__ + (f": {message}" if message else "")


def _is_factory(function: Callable[..., Any], arguments: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError):  # some builtin functions have no signature
        return False
    return True


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise PartNotFoundError(f"{path} is no file")
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    # pickle finds classes by the name of their module; one that is taken gets a suffix.
    name = path.stem if loaded is None else f"{path.stem}_{abs(hash(path))}"
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    loader = _UserFileLoader(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise PartNotFoundError(f"there is no module {name}; a file ends in .py") from error
        raise
