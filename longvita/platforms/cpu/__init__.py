"""CPUs: torch and gloo."""
