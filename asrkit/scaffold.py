"""A package with a normalization of one's own, for `asrkit plugins new NAME`: it installs and works as it is written.

The norm in it is a true one (each frame by the mean magnitude of its features), so that a reader starts from something
that trains and passes every check, and changes one formula.
"""

from __future__ import annotations

import importlib.util
import keyword
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from string import Template

from asrkit import registry
from asrkit.errors import RecipeError, StorageError
from asrkit.recipe.vetting import scalar

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
RULE = "lowercase letters and digits, words joined by single underscores, a letter first"
RESERVED = {"norm": "the word for the slot in a recipe's layers", "encoder": "a key of every recipe"}

_MODULE = '''\
"""`$name`: every frame divided by the mean magnitude of its features.

    s_t = 1/C sum_c |x_tc| + sqrt(eps),   y_tc = gain_c x_tc / s_t

RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4) with the mean magnitude in place of the root mean square, as
Hoffer et al. 2018 (arXiv 1803.01814) do in batch norm. A frame times c > 0 gives the same output, up to eps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit import StackEncoder
from asrkit.encoders import NormOptions


class $norm(nn.Module):
    """x (B, T, C), mask (B, T) -> (B, T, C), 0 in the padding."""

    order_free = True  # other frames do not matter, so neither does their order; remove it if they do

    def __init__(self, size: int, options: NormOptions) -> None:
        super().__init__()
        self.eps = options.eps  # from the recipe's `norm:` section, as for every other strategy
        self.gain = nn.Parameter(torch.full((size,), options.gain)) if options.affine else 1.0

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # >>> Your formula goes here. x (B, T, C); mask (B, T) is True where a frame is real.
        scale = x.abs().mean(dim=-1, keepdim=True) + self.eps**0.5
        y = self.gain * x / scale
        # <<< The rest of the layers counts on zeros in the padding.
        return y.masked_fill(~mask.unsqueeze(-1), 0.0)


class ${norm}Encoder(StackEncoder):
    """The recipe's layers with `$name` in every `norm` slot and placement."""

    asrkit_api = $api  # the contract this file was written for; another asrkit says so before it builds anything

    def make_norm(self, size: int) -> nn.Module:
        return $norm(size, self.norm)
'''

_TEST = '''\
"""`$name` does what its formula says, and keeps the promises of every asrkit encoder."""

import torch
from $name import $norm

from asrkit.encoders import NormOptions
from asrkit.testing import parametrize_with_checks


@parametrize_with_checks(["$name"])
def test_contract(encoder, check):
    check(encoder)


def test_formula():
    """Worked by hand: the magnitudes of (3, -1) have the mean 2; the second frame is padding."""
    norm = $norm(2, NormOptions(eps=1e-12))
    y = norm(torch.tensor([[[3.0, -1.0], [9.0, 9.0]]]), torch.tensor([[True, False]]))
    torch.testing.assert_close(y, torch.tensor([[[1.5, -0.5], [0.0, 0.0]]]))
'''

_PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "$package"
version = "0.1.0"
description = "The normalization $name for asrkit"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["asrkit>=$minor"]

[project.optional-dependencies]
test = ["pytest>=8"]

# What makes `--encoder=$name` work wherever this package is installed.
[project.entry-points."asrkit.encoders"]
$name = "$name:${norm}Encoder"

[tool.hatch.build]
dev-mode-dirs = ["."]

[tool.hatch.build.targets.wheel]
only-include = ["$name.py"]
"""

_README = """\
# $package

A normalization for asrkit: the formula is at the top of `$name.py`.

Install it beside asrkit (`-e`: what you edit works at once; `[test]`: pytest), see that it is there, and check it:

```sh
pip install -e '.[test]'
asrkit plugins --kind encoders
asrkit plugins check $name
pytest
```

Train it, and the same recipe without a norm, on speech that is made on your machine (`pip install 'asrkit[synth]'`):

```sh
asrkit data synth --output work/synthetic_es --hours 1 --speakers 56
asrkit train RECIPE --data.root=work/synthetic_es --encoder=$name
asrkit train RECIPE --data.root=work/synthetic_es --encoder=none
```

RECIPE is any recipe of asrkit, for example its `recipes/demo.yaml`. asrkit's `docs/writing-a-plugin.md` says what an
encoder promises, and what to do about a check that fails.
"""


def check_name(name: str) -> None:
    """Refuse a name that cannot be one of an encoder and of a Python module (RecipeError, `plugin_name`)."""
    if not NAME.fullmatch(name):
        why, fix = "not a name that recipes and Python can use", f"take {RULE}"
    elif keyword.iskeyword(name) or not _is_text(name):
        why = "a word of Python" if keyword.iskeyword(name) else "a value in a recipe, not a name"
        fix = "choose another name"
    elif name in RESERVED:
        why, fix = RESERVED[name], "choose another name"
    elif owners := [plugin for plugin in registry.list_plugins("encoders") if plugin.name == name]:
        package = owners[0].package
        why, fix = f"already offered by {package} {owners[0].version}", "choose another name"
        fix += "" if package in ("asrkit", "(this process)") else f", or uninstall {package}"
    elif _importable(name):
        why, fix = "already the name of a Python module", "choose another name"
    else:
        return
    raise RecipeError(f"{name!r} is {why}", possible=_nearest_free(name), fix=fix, reason="plugin_name")


def _is_text(name: str) -> bool:
    """Whether YAML reads `--encoder=name` as a word, and not as true, null or the like."""
    try:
        return scalar(name, True, "", "") == name
    except RecipeError:
        return False


def _importable(name: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module that was made by hand
        return True
    return spec is not None and spec.origin is not None  # without origin: any folder of that name, which is no harm


def _nearest_free(name: str) -> str:
    """The most alike name that would do."""
    return next(candidate for candidate in _candidates(name) if _is_free(candidate))


def _candidates(name: str) -> Iterator[str]:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)  # MyNorm
    ascii_only = unicodedata.normalize("NFKD", spaced).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"[^a-z0-9]+", "_", ascii_only).strip("_")
    plain = plain if plain[:1].isalpha() else f"norm_{plain}".strip("_")
    yield plain
    yield plain if plain.endswith("norm") else f"{plain}_norm"
    yield f"my_{plain}"
    number = 2
    while True:
        yield f"my_{plain}_{number}"
        number += 1


def _is_free(name: str) -> bool:
    taken = {plugin.name for plugin in registry.list_plugins("encoders")}
    return _is_text(name) and not (keyword.iskeyword(name) or name in RESERVED or name in taken or _importable(name))


def package_name(name: str) -> str:
    """my_norm -> asrkit-my-norm: what pip calls the package, and the folder it is written to."""
    return f"asrkit-{name.replace('_', '-')}"


def plugin_files(name: str) -> dict[str, str]:
    """The package's files: path inside its folder -> text. `name` must have passed `check_name`."""
    from asrkit import __version__

    camel = "".join(word.capitalize() for word in name.split("_"))
    words = {
        "name": name,
        "package": package_name(name),
        "norm": camel if camel.endswith("Norm") else f"{camel}Norm",
        "api": str(registry.API),
        "minor": ".".join(__version__.split(".")[:2]),
    }
    templates = {
        "pyproject.toml": _PROJECT,
        f"{name}.py": _MODULE,
        f"tests/test_{name}.py": _TEST,
        "README.md": _README,
    }
    return {path: Template(text).substitute(words) for path, text in templates.items()}


def write_plugin(name: str, folder: Path | None = None) -> list[Path]:
    """Write the package to `folder` (default: its name, here) and return its files; none that is there is touched.

    Raises RecipeError (`plugin_name`, `exists`) before anything is written, StorageError where that fails.
    """
    check_name(name)
    folder = Path(package_name(name)) if folder is None else folder
    files = {folder / path: text for path, text in plugin_files(name).items()}
    written: list[Path] = []
    try:
        present = [str(path) for path in files if path.exists() or path.is_symlink()]
        if present:
            raise RecipeError(
                f"already there: {', '.join(present)}",
                fix="give another folder with --output, or move them away: nothing is ever overwritten",
                reason="exists",
            )
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:  # half a package is of no use, and would be in the way of the next try
            path.unlink(missing_ok=True)
        raise StorageError(
            f"{error.filename or folder}: {error.strerror or error}",
            fix="give a folder where you can write with --output",
            reason="storage",
        ) from error
    return written
