"""Hugging Face folders: Long-VITA, InternVL, Qwen2.5 and InternViT, read and written at any TP and PP."""
