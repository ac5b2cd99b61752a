"""Building blocks for reinforcement learning of generative models; see README.md.

Importing the package imports nothing else: take what you need from `rlgenkit.worlds`,
`rlgenkit.models`, `rlgenkit.samplers`, `rlgenkit.rewards`, `rlgenkit.optimizers` and
`rlgenkit.workbook`.
"""

__version__ = "0.1.0"
