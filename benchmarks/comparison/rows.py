"""All rows by name; each is a function of the settings, so that only the chosen ones prepare what they need."""

from comparison import (
    artefact_rows,
    encoder_rows,
    growth_rows,
    monitor_rows,
    prediction_rows,
    startup_rows,
    study_rows,
    training_rows,
)
from comparison.row import Rows

ROWS: Rows = {
    **training_rows.ROWS,
    **encoder_rows.ROWS,
    **growth_rows.ROWS,
    **startup_rows.ROWS,
    **prediction_rows.ROWS,
    **study_rows.ROWS,
    **monitor_rows.ROWS,
    **artefact_rows.ROWS,
}
