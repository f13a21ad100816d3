"""Runs the checks over an encoder in every stack, and as pytest's parameters."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from asrkit.encoders import Encoder, NormOptions
from asrkit.errors import AsrkitError, RecipeError, nearest
from asrkit.model import encoder_class
from asrkit.recipe.validation import RULES
from asrkit.testing import contract, export, hints, numerics, padding, scope, state
from asrkit.testing.case import STACKS, Case, first_line, norm_options
from asrkit.testing.result import (
    DEVIATION,
    FAILED,
    OK,
    SKIPPED,
    CheckFailed,
    DeclaredDeviation,
    Deviation,
    NotApplicable,
    Result,
)

Check = Callable[[Case], None]
# In the order in which a broken encoder is best mended: the first failure often explains later ones.
CHECKS: dict[str, Check] = {
    "shapes": contract.check_shapes,
    "num_frames": contract.check_num_frames,
    "padding_eval": padding.check_padding_eval,
    "padding_train": padding.check_padding_train,
    "padding_output": padding.check_padding_output,
    "batch_mates": padding.check_batch_mates,
    "state_eval": state.check_state_eval,
    "state_train": state.check_state_train,
    "gradients": numerics.check_gradients,
    "derivative": numerics.check_derivative,
    "norm_derivative": numerics.check_norm_derivative,
    "deterministic": state.check_deterministic,
    "same_seed": state.check_same_seed,
    "initial_weights": state.check_initial_weights,
    "save_load": state.check_save_load,
    "batch_of_one": contract.check_batch_of_one,
    "shortest": contract.check_shortest,
    "nan": numerics.check_nan,
    "bfloat16": numerics.check_bfloat16,
    "double": numerics.check_double,
    "batch_statistics": numerics.check_batch_statistics,
    "running_statistics": numerics.check_running_statistics,
    "export": export.check_export,
    "scope": scope.check_scope,
    "hints": hints.check_hints,
}
_ORDER = (FAILED, DEVIATION, OK, SKIPPED)
ONCE = (
    "norm_derivative",
    "running_statistics",
    "scope",
    "hints",
)  # they look at the norm itself; the stack does not matter


class Kit:
    """One encoder class, the stacks it is tried in, and the deviations it declares.

    A stack other than the first may be refused with a RecipeError of reason `placement`; it is then left out, and
    `refused` says why.
    """

    def __init__(
        self, encoder: str | type[Encoder], stacks: Mapping[str, list[Any]] | None, norm: NormOptions | None
    ) -> None:
        self.cls = encoder_class(encoder) if isinstance(encoder, str) else encoder
        self.deviations = declared_deviations(self.cls)
        self.refused: dict[str, str] = {}
        self.fitting: set[str] = set()
        options = norm or norm_options()
        self.cases = [Case(self.cls, name, layers, options) for name, layers in (stacks or STACKS).items()]
        for case in self.cases[1:]:
            case.first = False
        known = {*STACKS, *(case.stack for case in self.cases)}
        for name, deviation in self.deviations.items():
            for stack in sorted(set(deviation.stacks) - known):
                where = f"{self.cls.__module__}.{self.cls.__qualname__}.deviations[{name!r}]"
                raise RecipeError(f"{where}: no stack {stack!r}", possible=nearest(stack, known), reason="deviations")

    def refuse_options(self, given: Mapping[str, Any]) -> None:
        """RecipeError, once for all checks, if the encoder refuses the options it was `given` in every stack."""
        refusals = []
        for case in self.cases if given else ():
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    case.construct()
                    return
                except RecipeError as error:
                    refusals.append(error)
                except Exception:  # the checks say what is wrong
                    return
        if refusals:
            why, options = refusals[0], ", ".join(f"norm.{key}={value}" for key, value in given.items())
            raise RecipeError(
                f"{self.cls.__name__} cannot be built with {options}: {why.what}",
                possible=why.possible,
                fix=why.fix,
                reason=why.reason,
            ) from why

    def run(self, name: str) -> Result:
        """One check in all stacks: the worst failure, else deviation, else the result nearest to its limit."""
        cases = self.cases[:1] if name in ONCE else self.cases
        results = [result for case in cases if (result := self._run_case(name, case)) is not None]
        found = [r for r in results if r.status == min((r.status for r in results), key=_ORDER.index)]
        worst = max(found, key=lambda result: (result.measured or 0.0) / (result.allowed or 1.0))
        if worst.status != OK:
            return worst
        notes = dict.fromkeys(note for case in cases for note in case.notes)
        if name == next(iter(CHECKS)):
            notes |= dict.fromkeys(f"left out: {stack} ({why})" for stack, why in self.refused.items())
        return dataclasses.replace(worst, text="; ".join(part for part in (worst.text, *notes) if part))

    def _run_case(self, name: str, case: Case) -> Result | None:
        deviation = self.deviations.get(name)
        deviation = deviation if deviation and deviation.covers(case.stack) else None
        result = self._attempt(name, case)
        if result is None or result.status == SKIPPED or deviation is None:
            return result
        if result.status == OK:
            text = f"{case.stack}: declared as a deviation ({deviation.reason}), but it passes: remove the declaration"
            return Result(name, FAILED, text, case.stack, reason=deviation.reason)
        return Result(
            name, DEVIATION, result.text, case.stack, result.measured, result.allowed, reason=deviation.reason
        )

    def _attempt(self, name: str, case: Case) -> Result | None:
        """None if the encoder cannot be in this stack and says so."""
        case.measured, case.allowed, case.notes = None, None, []
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the kit measures; what libraries say about it is beside the point
                if self._refuses(case):
                    return None
                CHECKS[name](case)
        except NotApplicable as why:
            return Result(name, SKIPPED, str(why), case.stack)
        except CheckFailed as failure:
            return Result(name, FAILED, str(failure), case.stack, case.measured, case.allowed)
        except Exception as error:
            text = f"{case.stack}: raises {type(error).__name__}: {first_line(error)}"
            return Result(name, FAILED, text, case.stack)
        text = "" if case.measured is None else f"{case.stack}: {case.measured:.2g} (allowed {case.allowed:.2g})"
        return Result(name, OK, text, case.stack, case.measured, case.allowed)

    def _refuses(self, case: Case) -> bool:
        """Whether the encoder cannot be built in this stack, or, at the latest, says so at its first batch."""
        if case is not self.cases[0] and case.stack not in self.fitting:
            try:
                case.run(case.build(), *case.batch())
                self.fitting.add(case.stack)
            except AsrkitError as error:
                if error.reason == "placement":
                    self.refused[case.stack] = error.what
                    return True
            except Exception:  # the check itself will say what is wrong
                self.fitting.add(case.stack)
        return case.stack in self.refused


def check_encoder(
    encoder: str | type[Encoder],
    *,
    checks: Iterable[str] | None = None,
    stacks: Mapping[str, list[Any]] | None = None,
    **norm: Any,
) -> list[Result]:
    """Every check of an encoder, by its registered name or by its class; nothing is raised for what they find.

    checks: only these of CHECKS. stacks: names and `layers:` to try it in, instead of the kit's own. norm: entries of
    the recipe's `norm:` section, such as masked=False.
    Raises RecipeError for a name, an option or a check that does not exist, for a class that is no encoder, and for
    options with which the encoder cannot be built.
    """
    return list(iterate_checks(encoder, checks=checks, stacks=stacks, **norm))


def iterate_checks(
    encoder: str | type[Encoder],
    *,
    checks: Iterable[str] | None = None,
    stacks: Mapping[str, list[Any]] | None = None,
    **norm: Any,
) -> Iterator[Result]:
    """`check_encoder`, one result after the other."""
    names = list(CHECKS if checks is None else checks)
    for name in names:
        if name not in CHECKS:
            raise RecipeError(f"unknown check {name!r}", possible=nearest(str(name), CHECKS), reason="unknown_check")
    kit = make_kit(encoder, stacks, **norm)
    kit.refuse_options(norm)
    for name in names:
        yield kit.run(name)


def make_kit(encoder: str | type[Encoder], stacks: Mapping[str, list[Any]] | None = None, **norm: Any) -> Kit:
    """The kit for an encoder's name or class; errors as in `check_encoder`."""
    known = [field.name for field in dataclasses.fields(NormOptions)]
    for key in norm:
        if key not in known:
            what = "norm.batch is of training, no norm sees it" if key == "batch" else f"unknown option norm.{key}"
            raise RecipeError(what, possible=nearest(key, known), fix="leave it out", reason="plugin_option")
    options = norm_options(**norm)
    for key, value in norm.items():
        RULES[f"norm.{key}"].check(f"norm.{key}", value)
    if not isinstance(encoder, str) and not (isinstance(encoder, type) and issubclass(encoder, Encoder)):
        raise RecipeError(
            f"{encoder!r} is no encoder", possible="a name or a subclass of asrkit.Encoder", reason="encoder_contract"
        )
    return Kit(encoder, stacks, options)


def declared_deviations(cls: type[Encoder]) -> dict[str, Deviation]:
    """The class attribute `deviations`, checked: RecipeError (`deviations`) for unknown checks and missing reasons."""
    found = {}
    for name, value in dict(getattr(cls, "deviations", {})).items():
        deviation = value if isinstance(value, Deviation) else Deviation(value)
        where = f"{cls.__module__}.{cls.__qualname__}.deviations[{name!r}]"
        if name not in CHECKS:
            raise RecipeError(f"{where}: no such check", possible=nearest(str(name), CHECKS), reason="deviations")
        if not isinstance(deviation.reason, str) or not deviation.reason.strip():
            raise RecipeError(f"{where} gives no reason", fix="say why, in a sentence", reason="deviations")
        found[name] = deviation
    return found


class Call:
    """A check as a test calls it: `check(encoder)` passes, fails, or raises DeclaredDeviation for a strict xfail."""

    def __init__(self, name: str, kits: Callable[..., Kit] = make_kit) -> None:
        self.name, self.kits = name, kits
        self.__name__ = name

    def __call__(self, encoder: str | type[Encoder]) -> None:
        result = self.kits(encoder).run(self.name)
        if result.status == FAILED:
            raise CheckFailed(str(result))
        if result.status == DEVIATION:
            raise DeclaredDeviation(f"{result} (declared: {result.reason})")
        if result.status == SKIPPED:
            import pytest

            pytest.skip(result.text)


def parametrize_with_checks(encoders: Iterable[str | type[Encoder]], **options: Any) -> Any:
    """A decorator for pytest: one test for each encoder and check.

    >>> @parametrize_with_checks(["my_norm"])                            # doctest: +SKIP
    ... def test_my_norm(encoder, check):
    ...     check(encoder)

    A declared deviation is a strict xfail: that it passes is an error, and so is another failure of the same check.
    `options` are those of `check_encoder`.
    """
    import pytest

    @functools.cache  # the checks of an encoder share its training
    def kits(encoder: str | type[Encoder]) -> Kit:
        return make_kit(encoder, **options)

    parameters = []
    for encoder in encoders:
        cls = encoder_class(encoder) if isinstance(encoder, str) else encoder
        deviations = declared_deviations(cls)
        for name in CHECKS:
            reason = deviations[name].reason if name in deviations else ""
            marks = [pytest.mark.xfail(strict=True, raises=DeclaredDeviation, reason=reason)] if reason else []
            label = encoder if isinstance(encoder, str) else encoder.__qualname__
            parameters.append(pytest.param(encoder, Call(name, kits), id=f"{label}-{name}", marks=marks))
    return pytest.mark.parametrize(("encoder", "check"), parameters)
