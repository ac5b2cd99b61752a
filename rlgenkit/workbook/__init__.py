"""What surrounds a method in a notebook: parameters, run record, claims, figures, exercises.

from rlgenkit import workbook as wb
"""

from rlgenkit._lazy import lazy

# Functions named like their file come at once, or the file would stand in their place.
from .parameters import parameters as parameters
from .provenance import provenance as provenance
from .show import show as show

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "claims": (
            "Claim Rival Row judge load_rows predictions rows_digest unmeasured untestable validate"
        ),
        "exercises": "Check Exercise Outcome Quiz check predict",
        "intervals": (
            "Interval binomial_interval cluster_interval clustered_interval interval "
            "prediction_interval"
        ),
        "ledger": "claims_preview claims_table",
        "parameters": "Declaration Parameters check_overrides declared parameters",
        "plots": (
            "bars before_after frontier heat_map image_grid lines ridge scatter strip three_curves"
        ),
        "progress": "Progress headless",
        "provenance": "provenance",
        "run": "NonFiniteError Run start",
        "show": "Picture markdown new_figure png show style table theory_table",
        "values": "ParameterError",
        "widgets": "Labels explore label_pairs",
    },
)
