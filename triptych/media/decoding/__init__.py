"""Decodes the pictures and videos of requests, within a budget.

The files are untrusted, and the decoders are other libraries. So services decode in child processes (`pool`, `child`)
that can be killed, and whose memory and CPU time the kernel bounds. Before that, `headers` refuses files that would
exceed the bounds, with a better message. `--fused` decodes its user's own files in its own process.
"""
