"""Pictures and videos that come with a request: what they say of themselves, and decoding them within a budget.

Strangers make these files, and decoders are other people's code. So services decode in child processes (`pool`,
`child`) that the kernel bounds in memory and CPU time and that can be killed; `headers` refuses before the first byte
is decoded what would end there, with a better sentence. `--fused`, whose files are its user's own, decodes in process.
"""
