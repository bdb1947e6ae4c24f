"""Why a bar was missed and what to try next, by the beginning of its name; for the report.

What is here was found by profiling. A missed bar without a reason is told to have none.
"""

REASONS: dict[str, str] = {}


def reason(what: str) -> str:
    """The reason that fits `what` best."""
    fitting = [name for name in REASONS if what.startswith(name)]
    return REASONS[max(fitting, key=len)] if fitting else "Not profiled yet."
