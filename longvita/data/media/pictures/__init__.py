"""Picture files: the parts that pixels depend on, orientation, conversion to RGB."""
