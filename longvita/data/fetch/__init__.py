"""Data files of a mix, and archives of its images and videos, from the Hugging Face Hub."""
