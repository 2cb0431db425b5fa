"""Stub of torchair, which MindSpeed imports and uses only for compiled graphs."""
