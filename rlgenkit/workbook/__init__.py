"""What surrounds a method in a notebook: parameters, run record, claims, figures, exercises.

from rlgenkit import workbook as wb
"""

from .claims import (
    Claim,
    Rival,
    Row,
    judge,
    load_rows,
    predictions,
    rows_digest,
    unmeasured,
    untestable,
    validate,
)
from .exercises import Check, Exercise, Outcome, Quiz, check, predict
from .intervals import (
    Interval,
    binomial_interval,
    cluster_interval,
    clustered_interval,
    interval,
    prediction_interval,
)
from .ledger import claims_preview, claims_table
from .parameters import (
    Declaration,
    ParameterError,
    Parameters,
    check_overrides,
    declared,
    parameters,
)
from .plots import (
    advantage_map,
    bars,
    before_after,
    frontier,
    heat_map,
    image_grid,
    lines,
    ridge,
    scatter,
    strip,
    three_curves,
)
from .progress import Progress, headless
from .provenance import provenance
from .run import NonFiniteError, Run, start
from .show import Picture, markdown, new_figure, png, show, style, table, theory_table
from .widgets import Labels, explore, label_pairs

__all__ = [
    "Check",
    "Claim",
    "Declaration",
    "Exercise",
    "Interval",
    "Labels",
    "NonFiniteError",
    "Outcome",
    "ParameterError",
    "Parameters",
    "Picture",
    "Progress",
    "Quiz",
    "Rival",
    "Row",
    "Run",
    "advantage_map",
    "bars",
    "before_after",
    "binomial_interval",
    "check",
    "check_overrides",
    "claims_preview",
    "claims_table",
    "cluster_interval",
    "clustered_interval",
    "declared",
    "explore",
    "frontier",
    "headless",
    "heat_map",
    "image_grid",
    "interval",
    "judge",
    "label_pairs",
    "lines",
    "load_rows",
    "markdown",
    "new_figure",
    "parameters",
    "png",
    "predict",
    "prediction_interval",
    "predictions",
    "provenance",
    "ridge",
    "rows_digest",
    "scatter",
    "show",
    "start",
    "strip",
    "style",
    "table",
    "theory_table",
    "three_curves",
    "unmeasured",
    "untestable",
    "validate",
]
