"""Readers with one defect each, as a negative control of the driver."""

import os
import time

from tfopt.types import TfoptError


class _Broken:
    def __init__(self, samples, work):
        del samples
        self._path = str(work / "file.bin")

    def mutate(self, rng):
        return rng.random() < 0.2

    def read(self, given):
        if given:
            self.fail()
        raise TfoptError(f"Damaged. Received: {self._path}")

    def names(self, given):
        del given
        return [self._path]

    def fail(self):
        raise NotImplementedError


class Raises(_Broken):
    """Lets another exception through."""

    def fail(self):
        return {}["missing"]


class Nameless(_Broken):
    """Does not say which file it is."""

    def fail(self):
        raise TfoptError("Damaged. Received: something")


class Hangs(_Broken):
    """Never ends."""

    def fail(self):
        while True:
            time.sleep(1)


class Grows(_Broken):
    """Takes memory bit by bit, and calls that a damaged file."""

    def fail(self):
        taken = []
        try:
            while True:
                taken.append(bytearray(1 << 20))
        except MemoryError as error:
            del taken
            raise TfoptError(f"Too large. Received: {self._path}") from error


class Allocates(_Broken):
    """Believes a size in the file."""

    def fail(self):
        return bytearray(1 << 50)


class Aborts(_Broken):
    """Ends its process."""

    def fail(self):
        os.abort()
