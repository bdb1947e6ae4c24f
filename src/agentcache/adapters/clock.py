"""The clocks of this machine."""

import time


class SystemClock:
    """A Clock that tells the time. It is asked several times a token, so nothing is in between."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
