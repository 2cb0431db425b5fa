"""The quickstart: a small Long-VITA learns to read scanned digits in pictures and videos, in four stages."""
