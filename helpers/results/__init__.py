"""Results: tidy rows, statistics, tables, leaderboard, summary for people who requested removal, printed numbers."""

from .rows import run_rows, tidy
from .tables import effective_settings, gap_points, summary, table, verdict_lines

__all__ = ["effective_settings", "gap_points", "run_rows", "summary", "table", "tidy", "verdict_lines"]
