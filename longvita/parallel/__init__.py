"""How a model and a batch are split over processes."""
