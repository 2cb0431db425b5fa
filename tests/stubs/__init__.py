"""Stand-ins for libraries that need an accelerator, with the real signatures and the right numbers in plain torch."""
