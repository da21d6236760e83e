"""A role's means: what a TOML file says of how its models are placed and run (docs/means.md). Imports no torch.

`options` has the tables, `tables` reads and checks them, `published` has the names that diffusers publishes, `process`
applies what must come before torch. `triptych.stages.means` applies the rest.
"""
