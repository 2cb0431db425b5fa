"""Errors of questions. Imported before any large library is."""

from __future__ import annotations

from longvita.errors import UserError


class PromptError(UserError, ValueError):
    """A question, picture or video that cannot be used."""
