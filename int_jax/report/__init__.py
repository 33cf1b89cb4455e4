"""What a run leaves to be read: results.json, the scalars of training, the end-of-run tables, the HTML report.

Pure host code. Numbers come from `results` (keys: results.ORDER; fractions in [0, 1], times in seconds) and are
shown as they are.
"""

from int_jax.report.cells import label, policies_of, seeds_table, tables
from int_jax.report.page import Attempt, Conversation, Example, Turn, html, write_html
from int_jax.report.results import Scalars, Series, Writer, plain, write_results

__all__ = [
    "Attempt",
    "Conversation",
    "Example",
    "Scalars",
    "Series",
    "Turn",
    "Writer",
    "html",
    "label",
    "plain",
    "policies_of",
    "seeds_table",
    "tables",
    "write_html",
    "write_results",
]
