"""The unlearning methods; `METHODS` has one record for each."""

from .registry import (
    DOCUMENTS,
    IDEAS,
    METHODS,
    PUBLISHED,
    Method,
    Search,
    Setting,
    check_name,
    find,
    register,
    source_of,
)

__all__ = [
    "DOCUMENTS",
    "IDEAS",
    "METHODS",
    "PUBLISHED",
    "Method",
    "Search",
    "Setting",
    "check_name",
    "find",
    "register",
    "source_of",
]
