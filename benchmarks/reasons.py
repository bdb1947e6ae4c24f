"""Why a bar was missed and what to try next, by the beginning of its name; for the report.

What is here was found by profiling. A missed bar without a reason is told to have none.
"""

REASONS: dict[str, str] = {
    "canary": (
        "Two more rows make 34, which the kernels for few rows fill up to 48 (reckoned, not "
        "profiled): so it is off unless asked for (decision 0014). Next: rows of a chunk in groups "
        "of 32 and the rest, or a chunk that is shorter by what runs again."
    ),
    "CPU of server, scheduler and SSE": (
        "A single stream wakes the engine thread, the event loop and the sender for each token, on "
        "caches that the step before has emptied: the same code costs a quarter of it where eight "
        "streams share a step. 95 Python calls a token are left on the event loop's thread, about "
        "235 on the engine's. Next: fewer of them in the planner's step."
    ),
    "first token (native": (
        "A live sequence got faster than what it is measured against: reading, checking and "
        "placing 110 MB of rows in fresh memory is what is left (stages are below). With q8, the "
        "default, 31 MB are read. Next: keep buffers that were freed, and run the first layers "
        "while later ones are still being decoded."
    ),
    "first token (q8": (
        "Reading 31 MB and decoding them into 110 MB of fresh memory is what a live sequence does "
        "not pay. Next: keep buffers that were freed, and run the first layers while later ones "
        "are still being decoded."
    ),
}


def reason(what: str) -> str:
    """The reason that fits `what` best."""
    fitting = [name for name in REASONS if what.startswith(name)]
    return REASONS[max(fitting, key=len)] if fitting else "Not profiled yet."
