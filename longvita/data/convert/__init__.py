"""`longvita data convert`: samples of any format, written as published JSONL or as WebDataset."""
