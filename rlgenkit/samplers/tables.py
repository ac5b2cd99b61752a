"""Coefficient tables: every sampler is one row (A, B, C) per step.

x' = A_i x + B_i prediction + C_i z,  z ~ N(0, I).  The coefficients are computed in float64 and
stored in float32, so that sampling and replay read the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

FLOW_KINDS = ("ode", "flow", "dance", "cps")
PREDICTIONS = ("epsilon", "v", "sample")
LEAST_STD = 1e-6  # less noise is lost when it is added to latents in float32
# Settings under which a scheduler is no affine map of (x, prediction) at levels of its own betas.
REFUSED = (
    "clip_sample", "thresholding", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "use_flow_sigmas", "stochastic_sampling", "invert_sigmas",
)  # fmt: skip


@dataclass(frozen=True)
class StepTable:
    """Coefficients of N sampling steps, noisy end first, rounded to float32.

    kind             "ode", "flow", "dance", "cps", "ddim" or "consistency"
    t, t_next [N]    time given to the network (flow: 1000 sigma, else the integer timestep), and
                     at the end of the step
    a, b, std [N]    std 0 marks a deterministic step
    dt        [N]    flow: sigma_i - sigma_{i+1} > 0; 1 for discrete-time samplers
    sigma     [N+1]  noise level at the ends of the steps (flow sigma, or sqrt(1 - alpha_bar))
    a_ode, b_ode [N] the same step without noise (nan where a sampler has none)
    a_x0, b_x0   [N] estimate of the clean latent: x0 = a_x0 x + b_x0 prediction
    final            "sample": the last latent is the result; "denoised": the last x0 estimate is
    precision [N]    1/(2 std^2), 0 where deterministic: log_prob = log_norm - precision |x'-mean|^2
    log_norm  [N]    -log std - log(2 pi)/2 per element; 0 where the step is deterministic
    """

    kind: str
    t: Tensor
    t_next: Tensor
    a: Tensor
    b: Tensor
    std: Tensor
    dt: Tensor
    sigma: Tensor
    a_ode: Tensor
    b_ode: Tensor
    a_x0: Tensor
    b_x0: Tensor
    final: str = "sample"
    precision: Tensor = field(init=False)
    log_norm: Tensor = field(init=False)
    rows: tuple = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = ("a", "b", "std", "dt", "sigma", "a_ode", "b_ode", "a_x0", "b_x0")
        made = {name: getattr(self, name).float() for name in names}
        for name in names:  # a sampler may have no step without noise
            if "ode" not in name and not made[name].isfinite().all():
                raise ValueError(
                    f"'{name}' of this {self.kind} table has entries that are not finite: check its "
                    "levels, times and numbers"
                )
        noisy = made["std"] >= LEAST_STD
        made["std"] = torch.where(noisy, made["std"], 0.0)
        std = made["std"].double()
        log_norm = -std.log() - 0.5 * math.log(2 * math.pi)
        made["precision"] = torch.where(noisy, 0.5 / std**2, 0.0).float()
        made["log_norm"] = torch.where(noisy, log_norm, 0.0).float()
        # Python floats of the float32 table: no indexing and no device transfer in the hot loop
        columns = (made[name].tolist() for name in ("a", "b", "std", "precision", "log_norm"))
        for name, value in (made | {"rows": tuple(zip(*columns, strict=True))}).items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def stochastic(self) -> Tensor:
        """Bool[N]: steps that draw noise, hence have a log-probability."""
        return self.std > 0


def windowed(table: StepTable, window: Iterable[int] | None) -> StepTable:
    """Copy of the table whose steps outside `window` (indices) use the deterministic row.

    The window is one for the whole batch: drawing it per sample would mix samplers within a group.
    """
    if window is None:
        return table
    steps = list(window)
    if any(not 0 <= i < len(table) for i in steps):
        raise ValueError(f"the window {steps} is not inside 0..{len(table) - 1}")
    outside = torch.ones(len(table), dtype=torch.bool)
    outside[steps] = False
    if torch.isnan(table.a_ode[outside]).any():
        raise ValueError(f"a {table.kind} table has no deterministic step: pass window=None")
    return replace(
        table,
        a=torch.where(outside, table.a_ode, table.a),
        b=torch.where(outside, table.b_ode, table.b),
        std=torch.where(outside, 0.0, table.std),
    )


# ---------------------------------------------------------------- rectified flow


def flow_sigmas(n_steps: int, shift: float = 1.0) -> Tensor:
    """Noise levels 1 -> 0, evenly spaced and then shifted (SD3, eq. 23): float64 [n_steps + 1]."""
    if n_steps < 1 or not 0 < shift < 1e9:
        raise ValueError(f"n_steps must be >= 1 and shift > 0, got {n_steps} and {shift}")
    u = torch.linspace(1.0, 0.0, n_steps + 1, dtype=torch.float64)
    return shift * u / (1 + (shift - 1) * u)


def sigmas_from_scheduler(
    scheduler: object,
    n_steps: int,
    mu: float | None = None,
    sigmas: Sequence[float] | None = None,
) -> Tensor:
    """Noise levels float64 [n_steps + 1] of a diffusers flow-matching scheduler.

    mu: the shift of one that shifts by the size of the picture (FLUX.1-dev; `calculate_shift` of
    diffusers). sigmas [n_steps]: levels before the shift, where the pipeline sets them itself
    (FLUX: 1 to 1/n_steps); None: the scheduler's.
    """
    config = _settings(scheduler, n_steps)
    dynamic = bool(config.get("use_dynamic_shifting"))
    if "FlowMatchEuler" not in type(scheduler).__name__ or config["num_train_timesteps"] != 1000:
        raise ValueError("levels of a flow come from a FlowMatchEuler scheduler with 1000 times")
    if dynamic != (mu is not None):
        raise ValueError(
            f"use_dynamic_shifting is {dynamic} here: {'pass' if dynamic else 'no'} mu"
        )
    scheduler.set_timesteps(n_steps, sigmas=sigmas, mu=mu)
    return scheduler.sigmas.cpu().double()


def flow_table(
    n_steps: int | None = None,
    kind: str = "flow",
    noise: float = 0.7,
    shift: float = 1.0,
    sigmas: Tensor | Sequence[float] | None = None,
) -> StepTable:
    """Rectified-flow sampler for velocity predictions v = x1 - x0, x_t = (1-sigma) x0 + sigma x1.

    kind "ode": Euler. "flow": SDE of Flow-GRPO with s_t = noise sqrt(sigma/(1-sigma)), where
    sigma = 1 uses the second level in the denominator. "dance": the same SDE with constant
    s_t = noise (DanceGRPO). "cps": coefficients-preserving sampling, noise in [0, 1] (FlowCPS).
    noise = 0 is the Euler ODE for every kind. The network's time is 1000 sigma.
    """
    if kind not in FLOW_KINDS:
        raise ValueError(f"kind must be one of {', '.join(FLOW_KINDS)}, got {kind!r}")
    if (n_steps is None) == (sigmas is None):
        raise ValueError("give either n_steps or sigmas, not both")
    if not noise >= 0 or (kind == "cps" and noise > 1):
        raise ValueError(f"noise must be >= 0 (and <= 1 for cps), got {noise}")
    level = flow_sigmas(n_steps, shift) if sigmas is None else torch.as_tensor(sigmas).double()
    falls = level.ndim == 1 and len(level) > 1 and bool((level.diff() < 0).all())
    if not falls or level[0] > 1 or level[-1] < 0:
        raise ValueError("sigmas must fall strictly from at most 1 to at least 0")
    a, b, std = _flow_rows(level, kind, noise)
    now, after = level[:-1], level[1:]
    one = torch.ones_like(now)
    return StepTable(
        kind, t=(now * 1000).float(), t_next=(after * 1000).float(), a=a, b=b, std=std,
        dt=now - after, sigma=level, a_ode=one, b_ode=after - now, a_x0=one, b_x0=-now,
    )  # fmt: skip


def _flow_rows(level: Tensor, kind: str, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """A, B, std [N] in float64 for levels [N+1]; see flow_table for the equations."""
    now, after = level[:-1], level[1:]
    dt = after - now
    if kind == "ode":
        return torch.ones_like(now), dt, torch.zeros_like(now)
    if kind == "cps":
        std = after * math.sin(noise * math.pi / 2)
        kept = after * math.cos(noise * math.pi / 2)
        return (1 - after) + kept, -now * (1 - after) + kept * (1 - now), std
    if kind == "dance":
        s = torch.full_like(now, noise)
    else:
        if level[0] >= 1 and len(level) == 2:
            raise ValueError("kind 'flow' has no finite noise in one step 1 -> 0: use 2 steps")
        s = noise * (now / (1 - torch.where(now >= 1, level[1], now))).sqrt()
    drift = s**2 / (2 * now)
    return 1 + drift * dt, (1 + drift * (1 - now)) * dt, s * (-dt).sqrt()


# ---------------------------------------------------------------- diffusion (DDIM)


def _x0_coefficients(abar: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """x0 = p x + q prediction for noise levels abar [N]."""
    signal, noise = abar.sqrt(), (1 - abar).sqrt()
    if prediction == "epsilon":
        if (abar <= 0).any():
            raise ValueError("epsilon prediction needs alphas_cumprod > 0; use v prediction")
        return 1 / signal, -noise / signal
    if prediction == "v":
        return signal, -noise
    if prediction == "sample":
        return torch.zeros_like(abar), torch.ones_like(abar)
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")


def _discrete(
    alphas_cumprod: Tensor, timesteps: Tensor | Sequence[int], prediction: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(steps Long[N], abar [N], p [N], q [N]), checked; x0 = p x + q prediction, in float64."""
    levels, steps = alphas_cumprod.cpu().double(), torch.as_tensor(timesteps).long().cpu()
    if steps.ndim != 1 or len(steps) < 1 or (steps.diff() >= 0).any():
        raise ValueError("timesteps must be a falling list of integers")
    if steps[0] >= len(levels) or steps[-1] < 0:
        raise ValueError(f"timesteps must lie in 0..{len(levels) - 1}, got {steps[0]}..{steps[-1]}")
    return steps, levels[steps], *_x0_coefficients(levels[steps], prediction)


def _discrete_table(
    kind: str, steps: Tensor, levels: Tensor, final: str = "sample", **columns: Tensor
) -> StepTable:
    """The table of N steps Long[N] between levels abar [N+1]."""
    return StepTable(
        kind, t=steps, t_next=torch.cat([steps[1:], steps.new_zeros(1)]),
        dt=torch.ones(len(steps)), sigma=(1 - levels).sqrt(), final=final, **columns,
    )  # fmt: skip


def ddim_table(
    alphas_cumprod: Tensor,
    timesteps: Tensor | Sequence[int],
    eta: float = 1.0,
    prediction: str = "epsilon",
    final_alpha_cumprod: float | None = None,
) -> StepTable:
    """DDIM (Song et al. 2020, eq. 12 and 16): std^2 = eta^2 (1-abar')/(1-abar) (1 - abar/abar').

    alphas_cumprod [T] in (0, 1]; timesteps [N] falling; the level after the last step is
    final_alpha_cumprod (None: alphas_cumprod[0], i.e. diffusers' set_alpha_to_one=False; 1.0 for
    True). When the last step has variance 0 (steps_offset=0, or final level 1) it is deterministic:
    its log-prob is 0 by definition, never nan.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in 0..1, got {eta}")
    steps, abar, p, q = _discrete(alphas_cumprod, timesteps, prediction)
    last = float(alphas_cumprod[0] if final_alpha_cumprod is None else final_alpha_cumprod)
    levels = torch.cat([abar, abar.new_tensor([last])])
    after = levels[1:]
    variance = ((1 - after) / (1 - abar) * (1 - abar / after)).clamp(min=0)
    std = eta * variance.sqrt()

    def rows(std: Tensor) -> tuple[Tensor, Tensor]:
        # mean = sqrt(abar') x0 + sqrt(1-abar'-std^2) eps, eps = (x - sqrt(abar) x0)/sqrt(1-abar)
        to_noise = (1 - after - std**2).clamp(min=0).sqrt() / (1 - abar).sqrt()
        of_x0 = after.sqrt() - to_noise * abar.sqrt()
        return to_noise + of_x0 * p, of_x0 * q

    (a, b), (a_ode, b_ode) = rows(std), rows(torch.zeros_like(std))
    return _discrete_table(
        "ddim", steps, levels, a=a, b=b, std=std, a_ode=a_ode, b_ode=b_ode, a_x0=p, b_x0=q
    )


def _settings(scheduler: object, n_steps: int) -> dict:
    """The config of a diffusers scheduler; refuses what changes its steps and no table can do."""
    config = scheduler.config
    found = [name for name in REFUSED if config.get(name)]
    if found:
        raise ValueError(f"{', '.join(found)} of the scheduler must be off: no table does the same")
    if n_steps < 1:
        raise ValueError(f"a sampler needs at least one step, got {n_steps}")
    return config


def _levels(scheduler: object, n_steps: int) -> tuple[Tensor, Tensor, str]:
    """(alphas_cumprod, timesteps Long[n_steps], prediction) of a diffusers scheduler of any class.

    Repeated times (PNDM's warm-up, second-order solvers) count once, Euler's fractions are rounded.
    """
    config, name = _settings(scheduler, n_steps), type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod") or config.get("timestep_type") == "continuous":
        raise ValueError(f"this {name} has no noise levels at whole times: use another scheduler")
    if config.get("skip_prk_steps") is False:
        raise ValueError(f"skip_prk_steps of {name} must be True: no table takes PRK's half steps")
    scheduler.set_timesteps(n_steps)
    times = scheduler.timesteps.cpu().double().round().long().unique().flip(0)
    if len(times) != n_steps:
        raise ValueError(f"{name} makes {len(times)} times of {n_steps} steps: use another number")
    kind = config.get("prediction_type", "epsilon")  # RePaint knows no other
    return scheduler.alphas_cumprod, times, "v" if kind == "v_prediction" else kind


def ddim_table_from_scheduler(scheduler: object, n_steps: int, eta: float = 1.0) -> StepTable:
    """ddim_table with the levels, times, last level and prediction of a diffusers scheduler.

    Of any class (PNDM, Euler, DPMSolver, ...): the table replaces its solver, not its schedule.
    ValueError for settings that change its steps and that no table can do, such as Karras levels.
    """
    levels, times, prediction = _levels(scheduler, n_steps)
    to_zero = scheduler.config.get("final_sigmas_type") != "sigma_min"
    last = 1.0 if scheduler.config.get("set_alpha_to_one", to_zero) else None
    return ddim_table(levels, times, eta, prediction, last)


# ---------------------------------------------------------------- consistency models


def consistency_table(
    alphas_cumprod: Tensor,
    timesteps: Tensor | Sequence[int],
    prediction: str = "epsilon",
    sigma_data: float = 0.5,
    timestep_scaling: float = 10.0,
    last: str = "deterministic",
) -> StepTable:
    """Multistep consistency sampling: x' = sqrt(abar') f(x) + sqrt(1-abar') z (RLCM).

    f = c_skip x + c_out x0 with the boundary coefficients of latent consistency models. last
    "deterministic": the last transition is f itself, without noise or log-prob. last "noisy": as
    published by RLCM, the last transition adds noise of its own level (std sqrt(1-abar)), although
    the result is the noise-free f: that action never reaches the reward and only adds gradient
    variance.
    """
    if last not in ("deterministic", "noisy"):
        raise ValueError(f"last must be 'deterministic' or 'noisy', got {last!r}")
    steps, abar, p, q = _discrete(alphas_cumprod, timesteps, prediction)
    scaled = steps.double() * timestep_scaling
    c_skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    c_out = scaled / (scaled**2 + sigma_data**2).sqrt()
    p, q = c_skip + c_out * p, c_out * q
    levels = torch.cat([abar, abar[-1:] if last == "noisy" else abar.new_ones(1)])
    after = levels[1:]
    a_ode, b_ode = (torch.full_like(abar, math.nan) for _ in range(2))
    if last == "deterministic":
        a_ode[-1], b_ode[-1] = p[-1], q[-1]
    return _discrete_table(
        "consistency", steps, levels, "denoised" if last == "noisy" else "sample",
        a=after.sqrt() * p, b=after.sqrt() * q, std=(1 - after).sqrt(),
        a_ode=a_ode, b_ode=b_ode, a_x0=p, b_x0=q,
    )  # fmt: skip


def consistency_table_from_scheduler(
    scheduler: object, n_steps: int, last: str = "deterministic"
) -> StepTable:
    """consistency_table with the grid, levels and prediction type of a diffusers LCMScheduler."""
    levels, times, prediction = _levels(scheduler, n_steps)
    scaling = float(scheduler.config.get("timestep_scaling", 10.0))
    return consistency_table(levels, times, prediction, timestep_scaling=scaling, last=last)
