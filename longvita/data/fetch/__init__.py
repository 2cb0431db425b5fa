"""`longvita data fetch`: the data files of a mix, and its pictures and videos, from the Hugging Face Hub."""
