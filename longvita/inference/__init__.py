"""Generation: chunked prefill, cached decoding, sampling, and the commands around them."""
