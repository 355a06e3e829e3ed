"""A network from a Python file of the user's: one file, checked by its digest before it is run."""

import ast
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from cluster.errors import ConfigError
from cluster.provenance import PACKAGES
from train.config import FileConfig
from train.models.source import check_sha256, content_sha256, read_file
from train.models.zoo import unknown_name

# Not "width" and "height": networks have a width of their own.
_OFFERS = ("shape", "num_classes", "in_channels")
_SIGNATURE = "build(shape, num_classes, **options), with shape = (channels, height, width)"


def build_from_file(config: FileConfig, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Run the file and call its factory.

    Raises:
        ConfigError: the file is missing or was changed, does not run, has no such factory, or the
            factory fails or gives something else than a module. The message names file and line.
    """
    module = _run(config.path, read_source(config.path, config.sha256))
    factory = getattr(module, config.factory, None)
    if not callable(factory):
        known = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
        problem = f"{config.path} has no function or class {config.factory!r}"
        raise ConfigError(unknown_name(problem, config.factory, known))
    offered = dict(zip(_OFFERS, (shape, num_classes, shape[0]), strict=True))
    arguments = _choose_arguments(factory, offered, config)
    try:
        net = factory(**arguments)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the user's code
        raise ConfigError(blame(error, config.path)) from None
    if not isinstance(net, nn.Module):
        kind = type(net).__name__
        raise ConfigError(
            f"{config.path}: {config.factory} gave a {kind}; it must give a torch.nn.Module"
        )
    return net


def read_source(path: Path, sha256: str | None = None) -> bytes:
    """Read a file of Python code.

    Raises:
        ConfigError: it is missing, or is not the file whose digest was recorded.
    """
    content = read_file(path)
    check_sha256(path, content, sha256)
    return content


def check_alone(path: Path) -> None:
    """Refuse a file that imports a neighbour, which a run would not keep.

    Neighbours lie in the file's folder, or in the one where the command is typed, from which
    ``python -m`` imports. Found out beforehand: there the import would succeed.

    Raises:
        ConfigError: names the line.
    """
    try:
        tree = ast.parse(read_source(path))
    except (SyntaxError, ValueError):
        return  # Running it says where and what.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." if node.level else node.module or ""]
        else:
            continue
        for name in (name.partition(".")[0] for name in names):
            if not name or _is_neighbour(name, path.parent):
                raise ConfigError(
                    f"{path.name}:{node.lineno} imports a neighbour ({name or 'relative'}); a run "
                    "keeps one file, so put both into one, or install the other as a package"
                )


def blame(error: BaseException, path: Path | None) -> str:
    """One line about an error of the user's code: file, line, function, and what was said.

    Args:
        error: as it was raised.
        path: of the user's file; None if there is none.
    """
    # Torch's longer messages go on with advice about torch itself.
    said = " ".join(str(error).strip().partition("\n\n")[0].split())[:300]
    kind = type(error).__name__
    problem = f"{kind}: {said}" if said else kind
    if path is None:
        return problem
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path.name}:{error.lineno}: {kind}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"{path.name}:{frames[-1].lineno} in {frames[-1].name}" if frames else path.name
    return f"{where}: {problem}"


def _is_neighbour(name: str, folder: Path) -> bool:
    """Whether a module of a file in ``folder`` is found near it, and not installed as well."""
    if name in PACKAGES:
        return False
    importlib.invalidate_caches()
    near = {folder.resolve(), Path.cwd()}
    found = PathFinder.find_spec(name, [str(one) for one in near])
    if found is None:
        return False
    others = [entry for entry in sys.path if Path(entry).resolve() not in near]
    # Other finders than that of paths know built-in modules, and packages under development.
    specs = (finder.find_spec(name, others) for finder in sys.meta_path)
    elsewhere = next((spec for spec in specs if spec is not None), None)
    # A folder without __init__.py, such as one of images, gives way to a package of its name.
    return elsewhere is None or found.origin not in (None, elsewhere.origin)


def _run(path: Path, source: bytes) -> ModuleType:
    name = f"raybridge_model_{content_sha256(source)[:12]}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    # While and after it runs: dataclasses, and torch's own look-ups of a class, ask for it.
    sys.modules[name] = module
    try:
        # The bytes whose digest was compared, not whatever lies there a moment later.
        exec(compile(source, str(path), "exec"), vars(module))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{blame(error, path)}; a model file must stand alone: it can import what is installed "
            "on every machine"
        ) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is the user's code
        raise ConfigError(blame(error, path)) from None
    return module


def _choose_arguments(
    factory: Callable[..., Any], offered: dict[str, Any], config: FileConfig
) -> dict[str, Any]:
    """What is offered and named by the factory, and the options."""
    where = f"{config.path.name}: {config.factory}"
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        raise ConfigError(f"{where} says no parameters; write it as {_SIGNATURE}") from None
    keywords = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    chosen = {name: value for name, value in offered.items() if name in keywords}
    for name, value in config.options.items():
        if name in offered:
            raise ConfigError(f"{where}: model.options.{name} is decided by the data")
        if name not in keywords and not open_ended:
            allowed = ", ".join(sorted(keywords.keys() - offered.keys())) or "none"
            problem = f"{where} takes no option {name}; allowed: {allowed}"
            raise ConfigError(problem)
        chosen[name] = value
    for name, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if needed and name not in chosen:
            raise ConfigError(
                f"{where} asks for {name}; give it with --set model.options.{name}=VALUE, or write "
                f"the factory as {_SIGNATURE}"
            )
    return chosen
