"""The CPU platform: torch and gloo."""
