"""What an epoch's time goes into."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from ..stream.samples import Sample


class Clock:
    """When an epoch was last told of, noted and saved, how fast it goes and how long it waited for samples."""

    def __init__(self, position: int) -> None:
        self._from, self._waited = position, 0.0
        self.started = self.reported = self.noted = self.saved = time.monotonic()

    def waiting(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Give the samples, and time how long each is in coming."""
        left = iter(samples)
        while True:
            asked = time.monotonic()
            sample = next(left, None)
            self._waited += time.monotonic() - asked
            if sample is None:
                return
            yield sample

    def speed(self, position: int) -> float:
        """Samples a second, of all ranks."""
        return (position - self._from) / max(time.monotonic() - self.started, 1e-9)

    @property
    def wait_share(self) -> float:
        """The share of the time that passed waiting for samples."""
        return self._waited / max(time.monotonic() - self.started, 1e-9)
