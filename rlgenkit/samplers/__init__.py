"""Samplers with log-probabilities: from noise to a sample, and back over the stored path.

One affine kernel, x' = A_i x + B_i prediction + C_i z, serves DDIM, flow ODEs and SDEs, sliding
windows and multistep consistency sampling, for drawing and for replay. A table holds the
coefficients.
"""

from .forward import noised_diffusion, noised_flow
from .rollout import (
    Denoiser,
    Step,
    Trajectory,
    branch_rollout,
    denoised,
    draw_noise,
    initial_noise,
    noise_floor,
    replay,
    rollout,
    step,
)
from .tables import (
    StepTable,
    consistency_table,
    consistency_table_from_scheduler,
    consistency_timesteps,
    ddim_table,
    ddim_table_from_scheduler,
    flow_sigmas,
    flow_table,
    sigmas_from_scheduler,
    windowed,
)
from .windows import (
    acting_steps,
    coarse_tail,
    exact_variances,
    gaussian_velocity_slope,
    random_window,
    residual_noise,
    window_at,
)

__all__ = [
    "Denoiser",
    "Step",
    "StepTable",
    "Trajectory",
    "acting_steps",
    "branch_rollout",
    "coarse_tail",
    "consistency_table",
    "consistency_table_from_scheduler",
    "consistency_timesteps",
    "ddim_table",
    "ddim_table_from_scheduler",
    "denoised",
    "draw_noise",
    "exact_variances",
    "flow_sigmas",
    "flow_table",
    "gaussian_velocity_slope",
    "initial_noise",
    "noise_floor",
    "noised_diffusion",
    "noised_flow",
    "random_window",
    "replay",
    "residual_noise",
    "rollout",
    "sigmas_from_scheduler",
    "step",
    "window_at",
    "windowed",
]
