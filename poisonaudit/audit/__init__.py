"""Score one model: every measure, its validity and what lies behind it."""

from poisonaudit.audit.context import Context
from poisonaudit.audit.runner import MEASURES, audit, bugs, known_measures, select_measures

__all__ = ["MEASURES", "Context", "audit", "bugs", "known_measures", "select_measures"]
