"""What surrounds a method in a notebook: parameters, run record, claims, figures, exercises.

    from rlgenkit import workbook as wb
"""

from .claims import (
    Claim, claims_table, clustered_interval, interval, iqm, probability_of_improvement, schema, stratified_interval,
    validate, verdict,
)
from .exercises import Check, Outcome, check, predict
from .parameters import (
    Declaration, ParameterError, Parameters, check_overrides, declared, parameters,
)
from .plots import (
    advantage_map, bars, before_after, calibration, frontier, heat_map, image_grid, lines,
    ratio_panel, ridge, scatter, strip, three_curves,
)
from .progress import Progress, headless
from .provenance import provenance
from .run import NonFiniteError, Run, start
from .show import Picture, markdown, new_figure, png, show, style, table, theory_table
from .widgets import Labels, explore, label_pairs

__all__ = [
    "Check", "Claim", "Declaration", "Labels", "NonFiniteError", "Outcome", "ParameterError",
    "Parameters", "Picture", "Progress", "Run", "advantage_map", "bars", "before_after",
    "calibration", "check", "check_overrides", "claims_table", "clustered_interval", "declared", "explore", "frontier",
    "headless", "heat_map", "image_grid", "interval", "iqm", "label_pairs", "lines", "markdown",
    "new_figure", "parameters", "png", "predict", "probability_of_improvement", "provenance",
    "ratio_panel", "ridge", "scatter", "schema", "show", "start", "stratified_interval", "strip",
    "style", "table", "theory_table", "three_curves", "validate", "verdict",
]
