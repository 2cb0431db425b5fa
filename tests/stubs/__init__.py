"""Stubs of libraries that need an accelerator, with the real signatures and correct results in plain torch."""
