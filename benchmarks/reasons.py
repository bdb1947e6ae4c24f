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
        "A single stream wakes the event loop for each token, on caches that the step before has "
        "emptied: a bare wake-up, a future and a write take 0.12 ms, and what is ours costs by how "
        "much code it touches (decision 0022), more beside a model that reads all its weights for "
        "a token. 17 Python calls a token are left on the event loop's thread, some 45 on the "
        "engine's, and as many for a turn as for thirty of its tokens. Next: fewer of the latter."
    ),
    "decode of 8 agents, of equal length": (
        "Of a step of eight, 118 ms on one thread (context 220, profiled), 63 ms were products, "
        "which two threads now share (decision 0024); MLX hands over to its stream's thread 240 "
        "times, 45 µs each, the attention of each sequence by itself takes 10 to 15 ms, choosing "
        "tokens 5. mlx_lm.server pads its batch and hands over once a step, which costs it the "
        "batch with a long one. Next: fewer evaluations a layer, attention of like lengths in one "
        "call."
    ),
    "first token (native": (
        "Of a traced resume after kill -9, two reader threads took 30 ms of CPU time to read and "
        "check 110 MB and 52 ms to place them, in memory that was made ready (decision 0020). "
        "A live sequence pays none of this. From RAM, agents that come back in a row outrun what "
        "is made ready: the first rows of one took 250 ms of CPU time, its pages being new. "
        "With q8, the default, 31 MB are read."
    ),
    "first token (q8": (
        "Reading, checking and decoding 31 MB is what a live sequence does not pay: in three "
        "traced resumes after kill -9, 22 to 30 ms of CPU time on each of two threads, in memory "
        "that was made ready (decision 0020). From RAM, agents that come back in a row outrun what "
        "is made ready: 84 ms on each thread where pages were new, 23 to 26 where they were not."
    ),
}


def reason(what: str) -> str:
    """The reason that fits `what` best."""
    fitting = [name for name in REASONS if what.startswith(name)]
    return REASONS[max(fitting, key=len)] if fitting else "Not profiled yet."
