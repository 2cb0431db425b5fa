"""The data layer: from data files, pictures and videos to packed batches (formats, index, mix, packing, loader)."""
