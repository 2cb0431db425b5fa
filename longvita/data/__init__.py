"""From JSONL files, pictures and videos to packed batches: samples, index, mixture, packing, loader."""
