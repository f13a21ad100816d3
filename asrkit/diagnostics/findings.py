"""What a check has found: a code for programs, and words for people. Every code that exists is in CATALOG."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

MORE = " (and "
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (error), suspicious (warning) or worth knowing (note).

    `layer`: the module's path where one is to blame; `measured`: the numbers; `why` it matters; the likely `fix`.
    """

    code: str
    severity: str
    layer: str | None
    measured: str
    why: str
    fix: str

    def as_dict(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        place = f" in {self.layer}" if self.layer else ""
        return f"{self.severity}[{self.code}]{place}: {self.measured}; {self.why}; fix: {self.fix}"


# code -> (why it matters, the likely fix)
CATALOG: dict[str, tuple[str, str]] = {
    "lengths_wrong_axis": (
        "CTC aligns all labels of an utterance within its length, so only that part of the audio is ever supervised",
        "take the number of frames of each utterance (the time axis) and divide it by the model's stride",
    ),
    "lengths_off_by_factor": (
        "with lengths too small the end of every utterance is never supervised, with lengths too large padding is",
        "compute the lengths with the model's own stride arithmetic, and compare the largest with the real output",
    ),
    "impossible_targets": (
        "their loss is infinite, or 0 without any gradient under zero_infinity, which makes the mean look better than "
        "it is",
        "leave these utterances out and count them, use fewer strides or longer units; first make sure of the lengths",
    ),
    "targets_out_of_range": (
        "torch's CTC reads and writes outside its memory for such labels and may return a plausible loss",
        "build the labels with the model's own alphabet; labels are 0 to V - 1 and never the blank",
    ),
    "empty_targets": (
        "without labels a batch teaches blanks alone, and a loss per label divides by 0",
        "look at what comes out of the tokenizer, and leave utterances without text out",
    ),
    "zero_infinity": (
        "utterances that cannot be aligned count as loss 0 with gradient 0: the loss falls with their share, and "
        "nobody sees that they teach nothing",
        "set zero_infinity=False, leave impossible utterances out before training, and count them",
    ),
    "log_softmax_missing": (
        "the CTC loss takes log-probabilities; from anything else come negative losses and wrong gradients",
        "apply log_softmax over the labels (the last axis), once, right before the loss",
    ),
    "log_softmax_twice": (
        "a softmax of a softmax is almost flat: no label can get more than e times the probability of another, and the "
        "gradient almost vanishes",
        "give the logits to log_softmax once, and no softmax before it",
    ),
    "linear_features": (
        "power spans five orders of magnitude, so a few loud frames are all that the first layer sees",
        "take the logarithm of the mel energies, then normalize mean and variance",
    ),
    "wild_bias_scale": (
        "biases of this size saturate gates and drown the input: in a deep stack the output hardly depends on the "
        "audio any more",
        "leave biases at the library's default or set them to 0; do not draw them from N(0, 1)",
    ),
    "wild_weight_scale": (
        "the variance of the signal changes by orders of magnitude in this layer",
        "use the library's default initialization, or Xavier, Kaiming or orthogonal weights",
    ),
    "vanishing_gradients": (
        "the first layers learn hundreds of times more slowly than the last, if they learn at all",
        "add residual connections, take ReLU out from between recurrent layers, put a norm there, or use fewer layers",
    ),
    "exploding_gradients": (
        "single steps throw the weights far away, or clipping makes every step the same length",
        "clip the norm of the gradient (1 to 5), lower the learning rate, check the scale of features and weights",
    ),
    "input_independent_layer": (
        "what comes out is nearly the same whatever goes in, so nothing above this layer can hear the audio",
        "check the scale of biases and weights, the normalization and the activations before it; add residual "
        "connections",
    ),
    "dead_relus": (
        "a unit that is 0 for every frame has no gradient and never comes back",
        "lower the learning rate, use leaky_relu or gelu, or put a norm before the activation",
    ),
    "padding_in_statistics": (
        "the same utterance gets another output in a batch with longer mates, and running averages are those of the "
        "padding",
        "compute mean and variance over real frames only (asrkit's norms take a mask), or over each frame's features",
    ),
    "padding_first": (
        "the output at real frames depends on how much padding the batch has: a backward recurrence that starts in the "
        "padding, a convolution that reads it, or attention that looks at it",
        "reverse only the real part of each utterance (or pack the sequence), set padding to 0 before each "
        "convolution, and give attention a mask (src_key_padding_mask)",
    ),
    "random_in_evaluation": (
        "the same audio gets another output each time that it is evaluated, and none of them is the model's",
        "use nn.Dropout and model.eval(), or give F.dropout training=self.training",
    ),
    "train_eval_mismatch": (
        "what is evaluated is not what was trained: the statistics of the norm differ between the two modes",
        "use a larger momentum (or train longer), larger batches, model.eval(), and keep padding out of statistics",
    ),
    "lr_too_high": (
        "the loss grows instead of falling, or stays above what a model reaches that hears nothing",
        "lower the learning rate by 3 to 10 times, warm it up, clip the gradient",
    ),
    "lr_too_low": (
        "after so many updates the model has not even learned how often each label occurs",
        "raise the learning rate by 3 to 10 times; with a schedule, look at where it begins",
    ),
    "batch_too_small_for_bn": (
        "mean and variance over so few utterances are mostly noise, and differ from those used at test time",
        "use batches of at least 8 utterances, or a norm without batch statistics (layer_norm)",
    ),
    "nan": (
        "one such number spreads to every weight with the next update",
        "find the clip or the layer it comes from; lower the learning rate; use bf16 or fp32 instead of fp16",
    ),
    "recurrence_over_batch": (
        "the recurrence runs from utterance to utterance instead of from frame to frame: it has no memory of the "
        "audio, and what an utterance gets depends on its neighbours",
        "set batch_first=True for inputs (B, T, C), in every recurrent layer",
    ),
    "outputs_out_of_order": (
        "each output is compared with the labels of another utterance, so nothing can be learned from them",
        "put outputs and lengths back into the order of the inputs: pack with enforce_sorted=False, or index both with "
        "the argsort of the indices of the sort",
    ),
    "leaked_state": (
        "the model begins with a state from an earlier, unrelated utterance, so its output depends on what came before",
        "start every utterance from a zero state: do not pass the last hidden state on",
    ),
    "collapse": (
        "the model gives blanks whatever it hears, and is no better than one that hears nothing",
        "look at the errors beside this one first; else: residual connections, sorted first epoch, another learning "
        "rate, a blank bias, a label prior",
    ),
    "hears_nothing": (
        "a recurrent model gets somewhat below the floor by knowing where in the utterance it is; other audio of the "
        "same length gives nearly the same output, so its errors say nothing about the audio",
        "train longer, or help input and gradients through a deep stack: a norm with batch statistics, residual "
        "connections, no ReLU between recurrent layers",
    ),
    "not_checked": (
        "what was not looked at may be wrong, whatever else is not",
        "give check_model a model or a batch that allows it, or look at this one by hand",
    ),
    "on_blank_plateau": (
        "a CTC model begins with blanks only; a healthy one leaves this plateau, usually within a few hundred updates",
        "wait; if it is still here after some 300 updates, it is a collapse",
    ),
}


def finding(code: str, severity: str, measured: str, layer: str | None = None) -> Finding:
    """A Finding with the words of its code."""
    assert severity in SEVERITIES
    why, fix = CATALOG[code]
    return Finding(code, severity, layer, measured, why, fix)


def sort(findings: Iterable[Finding]) -> list[Finding]:
    """Each (code, layer) once, the gravest first, otherwise in the order in which they were found."""
    once: dict[tuple[str, str | None], Finding] = {}
    for one in findings:
        kept = once.setdefault((one.code, one.layer), one)
        if SEVERITIES.index(one.severity) < SEVERITIES.index(kept.severity):
            once[one.code, one.layer] = one
    return sorted(once.values(), key=lambda one: SEVERITIES.index(one.severity))


def gather(findings: Iterable[Finding]) -> list[Finding]:
    """`sort`, with one finding for all layers that have the same: the first is named, the others are counted."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for one in sort(findings):
        groups.setdefault((one.severity, one.code), []).append(one)
    found = []
    for first, *rest in groups.values():
        more = f"{MORE}{len(rest)} more layer{'s' * (len(rest) > 1)})"
        found.append(replace(first, measured=first.measured.split(MORE)[0] + more) if rest else first)
    return found
