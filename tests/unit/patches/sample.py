"""Targets for the tests of patches."""

from __future__ import annotations

NUMBER = 3


def double(x: int, times: int = 2) -> int:
    return x * times


class Base:
    def inherited(self) -> str:
        return "base"


class Child(Base):
    @staticmethod
    def static(x: int) -> int:
        return x

    def method(self) -> str:
        return "child"
