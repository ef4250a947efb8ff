"""Results: tidy rows, statistics, tables, leaderboard, summary for people who requested removal, printed numbers."""

from .rows import losses_of, run_rows, tidy
from .tables import effective_settings, gap_points, summary, table, verdict_lines

__all__ = ["effective_settings", "gap_points", "losses_of", "run_rows", "summary", "table", "tidy", "verdict_lines"]
