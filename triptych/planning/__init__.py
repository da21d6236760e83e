"""What a fleet needs: which roles fit which cards, and how many of each. Arithmetic only; no torch, no files.

`triptych.stages.sizes` and `triptych.stages.dry_run` find the sizes that go in. docs/planning.md states the formulas.
"""
