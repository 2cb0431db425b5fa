"""The generation engine: chunked prefill, decode with a KV cache, sampling."""
