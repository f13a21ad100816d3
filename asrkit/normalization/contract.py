"""What a norm and a `wrap` must be, asked where they are made and where they are called.

What they break says so in a line with the plugin's name, and not as an error of the layer that meets it next.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.errors import AsrkitError, RecipeError
from asrkit.normalization import Frames, Rule
from asrkit.normalization.moments import Moments
from asrkit.normalization.rows import RowNorm
from asrkit.randomness import kept_generators

NORM_CONTRACT = "an nn.Module: norm(x (B, T, C), mask (B, T)) -> (B, T, C)"


def accept_norm(norm: Any, maker: str) -> nn.Module:
    """What `maker` returned, if it is a module that takes x and mask; from now on it is asked for x's shape.

    Raises RecipeError (`encoder_contract`): here, or with the first batch for what only shows then.
    """
    if not isinstance(norm, nn.Module):
        given = "None" if norm is None else f"a {type(norm).__name__}"
        raise RecipeError(f"{maker} returns {given}", possible=NORM_CONTRACT, reason="encoder_contract")
    for name, arguments in (("forward", ("x", "mask")), ("step", ("x", "t", "mask"))):
        if getattr(norm, name, None) is None:
            continue
        try:
            inspect.signature(getattr(norm, name)).bind(*arguments)
        except TypeError as error:  # nn.LayerNorm itself, above all
            raise RecipeError(
                f"{maker} returns a {type(norm).__name__}, whose {name} does not take {', '.join(arguments)} ({error})",
                possible=NORM_CONTRACT,
                fix="wrap it in a module of your own; `asrkit plugins new NAME` writes one",
                reason="encoder_contract",
            ) from error
        except ValueError:  # compiled: it has no signature to look at
            pass
    if not isinstance(norm, torch.jit.ScriptModule):  # which takes no hooks
        norm.register_forward_hook(check_forward)
    return norm


def check_forward(norm: nn.Module, given: tuple[Any, ...], y: Any) -> None:
    """The hook of every norm that was accepted: `check_output` after each call."""
    if given:  # by place, as asrkit does
        check_output(norm, given[0], y)


def check_output(norm: nn.Module, x: Tensor, y: Any) -> None:
    """Refuse, with RecipeError (`encoder_contract`), what a norm gives back unless it is a tensor of x's shape, and of
    float64 only where x is."""
    if torch.jit.is_tracing():  # it would keep the answer
        return
    double = torch.float64
    if isinstance(y, Tensor) and y.shape == x.shape and (y.dtype != double or x.dtype == double):
        return
    found = f"a tensor {tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
    raise RecipeError(
        f"the norm {type(norm).__name__} returns {found} for x {tuple(x.shape)} of {x.dtype}",
        possible="a tensor of x's shape and type",
        fix="sums over an axis want keepdim=True, new tensors x.dtype; give back the tensor alone",
        reason="encoder_contract",
    )


def row_norm_of(norm: nn.Module) -> RowNorm | None:
    """What the norm's `row_norm()` returns; RecipeError (`encoder_contract`) unless it is a RowNorm or None."""
    row = norm.row_norm()  # type: ignore[operator]
    if row is None or isinstance(row, RowNorm):
        return row
    raise _false_hint("row_norm()", norm, row, "an asrkit.normalization.RowNorm, or None where it is no norm of rows")


def rule_of(norm: nn.Module, frames: Frames) -> Rule:
    """What the norm's `rule(frames)` returns; RecipeError (`encoder_contract`) unless it is a Rule whose moments have
    an axis each for utterances, steps and features."""
    rule = norm.rule(frames)  # type: ignore[operator]
    if isinstance(rule, Rule) and isinstance(rule.moments, Moments) and all(m.dim() == 3 for m in rule.moments):
        return rule
    possible = "an asrkit.normalization.Rule(moments, how, gains, own) with moments (1, 1 or T, C)"
    raise _false_hint("rule(frames)", norm, rule, possible)


def _false_hint(hint: str, norm: nn.Module, given: Any, possible: str) -> RecipeError:
    found = f"a {type(given).__name__}"
    if isinstance(given, Rule):
        shapes = [tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in given.moments]
        found += f" with moments {', '.join(map(str, shapes))}"
    return RecipeError(
        f"{hint} of the norm {type(norm).__name__} returns {found}",
        possible=possible,
        fix=f"leave {hint.partition('(')[0]} out: then forward is called",
        reason="encoder_contract",
    )


def apply_wrap(
    wrap: Callable[[nn.Module, tuple[str, ...]], Any], layer: nn.Module, weights: tuple[str, ...], encoder: str
) -> None:
    """`wrap(layer, weights)` of an encoder; what it draws is no number of the other layers' weights.

    Raises RecipeError (`broken_plugin`, `encoder_contract`) if it fails, or gives back another module, which nobody
    would use.
    """
    try:
        with kept_generators():
            wrapped = wrap(layer, weights)
    except AsrkitError:
        raise
    except Exception as error:
        raise RecipeError(
            f"{encoder}.wrap fails: {type(error).__name__}: {error}",
            possible="wrap(layer, weights) -> layer",
            fix="mend the plugin; with --debug you see where it fails",
            reason="broken_plugin",
        ) from error
    if wrapped is not layer:
        raise RecipeError(
            f"{encoder}.wrap returns {'None' if wrapped is None else f'another {type(wrapped).__name__}'}",
            possible="the layer that it was given",
            fix="put parametrizations on the layer, in place, and return it",
            reason="encoder_contract",
        )
