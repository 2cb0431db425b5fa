"""Stands for torchair, which MindSpeed imports and uses for compiled graphs alone."""
