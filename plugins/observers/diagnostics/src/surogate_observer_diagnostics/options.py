"""The options: three switches, and every threshold. Defaults are those of the reference where it names one."""

from __future__ import annotations

from attrs import field, frozen

from surogate_core.offers import between, doc, ge, gt


@frozen(kw_only=True)
class Options:
    """Options of the diagnostics. Steps are optimizer steps."""

    auto_lr_reduction: bool = field(
        default=False,
        metadata=doc(
            "Cut the learning rate after a spike of the loss or an explosion of the gradient: at first for a while, then for good."
        ),
    )
    early_stop: bool = field(
        default=False, metadata=doc("Stop when training has converged, no longer pays, diverges or stands still.")
    )
    epoch_adjustment: bool = field(
        default=False,
        metadata=doc("Choose `num_epochs` for 20 tokens per parameter. Needs `lora = false`; no effect with `max_steps`."),
    )

    # what counts as a spike
    diagnostics_window: int = field(default=50, validator=ge(20), metadata=doc("Steps of the rolling windows."))
    spike_sigma: float = field(
        default=3.0, validator=gt(0), metadata=doc("A loss is a spike this many standard deviations above the window's mean.")
    )
    spike_rise: float = field(
        default=0.1, validator=ge(0), metadata=doc("A spike is at least this share above the window's mean, too.")
    )
    grad_explosion: float = field(
        default=10.0, validator=gt(1), metadata=doc("A gradient explodes when its norm is this many times the window's mean.")
    )

    # phases
    plateau_steps: int = field(default=100, validator=ge(20), metadata=doc("A plateau is at least this long."))
    plateau_improvement: float = field(
        default=0.01,
        validator=gt(0),
        metadata=doc("A plateau falls by less than this share of the loss in 500 steps, with two standard errors of confidence."),
    )
    divergence_rise: float = field(
        default=0.1, validator=gt(0), metadata=doc("A run diverges while its mean loss is this share above its best one.")
    )
    unstable_spikes: int = field(default=3, validator=ge(1), metadata=doc("Spikes within two windows that make a run unstable."))
    unstable_noise: float = field(
        default=3.0,
        validator=gt(1),
        metadata=doc("A run is unstable when its loss jumps this many times as far from step to step as in its calmest window."),
    )

    moe_collapse: float = field(
        default=0.5,
        validator=between(0.01, 0.99),
        metadata=doc(
            "Experts are collapsed while, over a window, the busiest is this share of the way from an even load to all of it, or "
            "fewer than this share of them get a token."
        ),
    )
    moe_collapse_steps: int = field(
        default=300,
        validator=ge(1),
        metadata=doc("Consecutive steps of collapsed experts before it is said: routers even out by themselves."),
    )

    # auto_lr_reduction
    lr_reduction_factor: float = field(
        default=0.5, validator=between(0.01, 0.99), metadata=doc("`auto_lr_reduction` multiplies the learning rate by this.")
    )
    lr_reduction_temporary: int = field(
        default=2, validator=ge(0), metadata=doc("Cuts that blend back before one is for good. They count until things stay calm.")
    )
    lr_reduction_limit: int = field(default=5, validator=ge(0), metadata=doc("Cuts for good of one run, at most."))
    lr_reduction_blend: int = field(
        default=50, validator=ge(1), metadata=doc("Steps in which a temporary cut blends back; as many without a spike are calm.")
    )
    lr_reduction_pause: int = field(default=20, validator=ge(1), metadata=doc("Steps between two cuts."))

    # early_stop
    early_stop_score: float = field(
        default=0.85, validator=between(0, 1), metadata=doc("Convergence score above which evaluations count for a stop.")
    )
    early_stop_evals: int = field(default=5, validator=ge(2), metadata=doc("Consecutive evaluations above the score that stop."))
    early_stop_efficiency: float = field(
        default=0.5,
        validator=between(0, 1),
        metadata=doc("Share of the best fall of the loss per FLOP below which training no longer pays."),
    )
    early_stop_divergence: int = field(default=200, validator=ge(1), metadata=doc("Consecutive diverging steps that stop."))
    early_stop_plateau: int = field(default=500, validator=ge(1), metadata=doc("Steps of a plateau that stop."))
    early_stop_improvement: float = field(
        default=0.001,
        validator=gt(0),
        metadata=doc(
            "Without evaluations: stop only if the loss falls by less than this share in 500 steps, with three standard errors."
        ),
    )
