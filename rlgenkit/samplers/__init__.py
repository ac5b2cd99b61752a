"""Samplers with log-probabilities: from noise to a sample, and back over the stored path.

One affine kernel, x' = A_i x + B_i prediction + C_i z, serves DDIM, flow ODEs and SDEs, sliding
windows and multistep consistency sampling, for drawing and for replay. A table holds the
coefficients.
"""

from rlgenkit._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "forward": "noised_diffusion noised_flow",
        "paths": ("Denoiser Step Trajectory denoised draw_noise initial_noise replay rollout step"),
        "tables": (
            "StepTable consistency_table consistency_table_from_scheduler ddim_table "
            "ddim_table_from_scheduler flow_sigmas flow_table sigmas_from_scheduler windowed"
        ),
        "windows": "acting_steps random_window",
    },
)
