"""What several commands share: options of a model, tables, progress bars, pages."""
